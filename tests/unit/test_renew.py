"""A clone's time and entropy: the program that the guest gets, and the host's part."""

from __future__ import annotations

import struct
import time
from collections.abc import Callable
from typing import Any

import pytest

from pytest_spapr.deadline import budgets
from pytest_spapr.errors import GuestError, MachineDied
from pytest_spapr.guest.guest import Guest
from pytest_spapr.images import renew
from pytest_spapr.images.elf import Elf
from pytest_spapr.timeline import Lane, Timeline


def guest(timeline: Timeline, send: Callable[[bytes], object], *, console: Any = "a console") -> Guest:
    nobody: Any = None
    return Guest(nobody, console, send, timeline, budgets("tcg"), kernel_release="6.1", running=lambda: True)


def test_the_program_is_one_that_the_kernel_loads() -> None:
    program = renew.program()
    assert Elf(program).needed() == []
    kind, machine, _, entry = struct.unpack_from("<HHIQ", program, 16)
    offset, address, _, size, in_memory = struct.unpack_from("<QQQQQ", program, 64 + 8)
    # ET_EXEC, EM_PPC64, and ELFv2: an entry that is code.
    assert (kind, machine, struct.unpack_from("<I", program, 48)[0]) == (2, 21, 2)
    assert (offset, size, in_memory) == (0, len(program), len(program))
    assert entry == address + 64 + 56


def test_its_branches_stay_inside() -> None:
    program = renew.program()
    code, end = program[120:], program.index(b"renew: done\n")
    words = struct.unpack(f"<{(end - 120) // 4}I", code[: end - 120])
    targets = [place + ((word & 0xFFFC ^ 0x8000) - 0x8000) // 4 for place, word in enumerate(words) if word >> 26 == 16]
    assert len(targets) == 14
    assert all(0 <= target < len(words) for target in targets)


def test_what_is_sent_are_the_kernels_structures() -> None:
    seed = bytes(range(renew.SEED))
    assert renew.message(5, 6, 3, seed) == struct.pack("<qqqqQii", 5, 6, 0, 1, 8, 256, 32) + seed


def test_each_renewal_has_the_hosts_time_and_another_seed() -> None:
    timeline = Timeline()
    sent: list[bytes] = []

    def send(data: bytes) -> None:
        sent.append(data)
        timeline.record(Lane.SERVICE, "renew: done")

    for _ in range(2):
        guest(timeline, send).renew()
    assert len({data[40:] for data in sent}) == 2
    for data in sent:
        seconds, nanoseconds = struct.unpack_from("<qq", data)
        assert 0 <= time.time() - (seconds + nanoseconds / 1e9) < 10


def test_each_cpu_is_told_and_has_answered_before_the_next() -> None:
    timeline = Timeline()
    masks: list[int] = []

    def send(data: bytes) -> None:
        assert len(timeline.since(0, Lane.SERVICE)) == len(masks)
        masks.append(struct.unpack_from("<Q", data, 32)[0])
        timeline.record(Lane.SERVICE, "renew: done")

    guest(timeline, send).renew((0, 1, 4))
    assert masks == [1, 2, 16]


def test_a_cpu_that_is_not_online_is_told() -> None:
    timeline = Timeline()
    answers = iter(("renew: absent", "renew: done"))
    assert guest(timeline, lambda _: timeline.record(Lane.SERVICE, next(answers))).renew((1, 0)) == {0}


def test_a_kernel_that_refuses_is_an_error() -> None:
    timeline = Timeline()
    with pytest.raises(GuestError, match="refused"):
        guest(timeline, lambda _: timeline.record(Lane.SERVICE, "renew: failed")).renew()


def test_a_qemu_that_died_is_the_reason() -> None:
    timeline = Timeline()

    def send(_: bytes) -> None:
        timeline.end(MachineDied("QEMU (pid 1) was killed by SIGKILL", -9))
        raise BrokenPipeError

    with pytest.raises(MachineDied, match="SIGKILL"):
        guest(timeline, send).renew()


def test_an_image_that_cannot_do_it_is_told() -> None:
    with pytest.raises(GuestError, match="no console shell"):
        guest(Timeline(), lambda _: pytest.fail("nothing must be sent"), console=None).renew()
