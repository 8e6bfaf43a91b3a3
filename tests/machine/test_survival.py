"""What a machine does to itself, or is done to it, and a test survives: in a stated time, with one clear message, and nothing is lost."""

from __future__ import annotations

import gc
import os
import re
import resource
import signal
import tempfile
import threading
import time
from pathlib import Path

import pytest

from pytest_spapr import (
    Contract,
    DeadlineExpired,
    Guest,
    Lane,
    LaunchMachine,
    PseriesMachine,
    SshFailed,
)
from pytest_spapr.deadline import Deadline
from pytest_spapr.qemu.flood import MOST

# From a failure to its message.
_SOON = 5.0


class TestQemu:
    def test_one_that_floods_its_stderr_is_driven_on_and_kept_in_bounds(self, launch_machine: LaunchMachine) -> None:
        machine = launch_machine(image=None, cpus=1, max_cpus=2)
        machine.qmp.hmp("log in_asm,exec,nochain")
        await_text(machine, "more than can be kept", Lane.STDERR)
        before = machine.timeline.mark()
        core = machine.cores.plug(wait=False)
        machine.qmp.hmp("log none")
        # What a verdict rests on comes through all the same.
        attached = [record.data for record in machine.timeline.since(before, Lane.DRC) if "attach" in record.text]
        assert [data["drc"] for data in attached if data] == list(core.drcs)
        machine.close()
        words = [record.text for record in machine.timeline.since(0, Lane.STDERR)]
        assert len(words) < MOST + 30
        assert any(re.fullmatch(r"\(\d+ lines are left out here\)", line) for line in words)

    def test_one_that_stands_still_is_told_and_ended(self, machine: PseriesMachine) -> None:
        os.kill(machine.process.pid, signal.SIGSTOP)
        with pytest.raises(DeadlineExpired, match="QEMU lives, and its monitor is silent since"):
            machine.qmp.execute("query-status", seconds=2.0)
        began = time.monotonic()
        machine.close()
        assert time.monotonic() - began < _SOON
        assert not Path(f"/proc/{machine.process.pid}").exists()


class TestGuest:
    def test_one_whose_ssh_server_is_dead_is_judged_by_its_console(
        self, machine: PseriesMachine, guest: Guest, contract: Contract
    ) -> None:
        core = machine.cores.plug()
        with pytest.raises(SshFailed):
            guest.run("killall -9 sshd dropbear")
        began = time.monotonic()
        with pytest.raises(SshFailed, match=r"cannot log in to the guest on port \d+: "):
            guest.run("true")
        assert time.monotonic() - began < machine.budgets.ssh + _SOON
        assert core.unplug() == contract.removal(core)

    def test_one_whose_file_system_is_full_gives_up_its_core(
        self, machine: PseriesMachine, guest: Guest, contract: Contract
    ) -> None:
        core = machine.cores.plug()
        # The root file system is in memory, half of which it may have.
        assert "No space left" in guest.run("dd if=/dev/zero of=/full bs=1M").stderr
        assert guest.run("echo more > /more").status != 0
        assert core.unplug() == contract.removal(core)

    @pytest.mark.parametrize("lines", [10_000, pytest.param(130_000, marks=pytest.mark.spapr_slow)])
    def test_one_that_floods_its_console_is_read_to_the_end(
        self, machine: PseriesMachine, guest: Guest, contract: Contract, lines: int
    ) -> None:
        """At 0.12 MB/s under TCG; that 100 MB fill no memory is tests/unit/test_flood.py's. The slow one is more than is kept."""
        core = machine.cores.plug()
        flood = f"yes flood-of-thirty-six-bytes-to-a-line | head -n {lines} > /dev/hvc0; echo over > /dev/hvc0; touch /over"
        guest.run(f"setsid sh -c '{flood}' > /dev/null 2>&1 < /dev/null &").check()
        assert core.unplug() == contract.removal(core)
        assert guest.run("while ! test -e /over; do usleep 100000; done", seconds=60 + lines / 300).status == 0
        machine.close()
        words = [record.text for record in machine.timeline.since(0, Lane.CONSOLE)]
        assert words[-1] == "over"
        came = sum(text.startswith("flood-of-") for text in words)
        left_out = sum(int(found[1]) for text in words if (found := re.fullmatch(r"\((\d+) lines are left out here\)", text)))
        assert came + left_out == lines
        assert bool(left_out) is (lines > MOST)


@pytest.mark.spapr_slow
def test_two_hundred_machines_leave_nothing(launch_machine: LaunchMachine) -> None:
    launch_machine(image=None, boot=False).close()
    before = held()
    for _ in range(200):
        machine = launch_machine(image=None)
        machine.close()
        assert not Path(f"/proc/{machine.process.pid}").exists()
    after = held()
    assert after[:3] == before[:3]
    assert after[3] < before[3] * 1.2


def held() -> tuple[int, int, int, int]:
    """Return how many descriptors, threads, files in the directory of temporary ones, and kilobytes of memory this process has."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    files = sum(1 for _ in Path(tempfile.gettempdir()).iterdir())
    return len(list(Path("/proc/self/fd").iterdir())), threading.active_count(), files, pages * resource.getpagesize() // 1024


def await_text(machine: PseriesMachine, words: str, lane: Lane) -> None:
    machine.timeline.wait(
        lambda record: record if record.lane is lane and words in record.text else None,
        since=0,
        deadline=Deadline(60),
        what=words,
    )
