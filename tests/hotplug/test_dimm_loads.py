"""DIMMs go while the guest uses their memory, in each way in which memory can be used."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Final

import pytest

from pytest_spapr import Attempt, Contract, Guest, Outcome, PseriesMachine, Silence
from pytest_spapr.deadline import Deadline
from pytest_spapr.hotplug.dimms import Dimm

from .loads import in_background
from .moments import unplug_once_begun
from .process import ADDRESS, HUGE, HUGEPAGE, LOCKED, MADVISE, MERGEABLE, NOHUGEPAGE, POPULATE_WRITE, POPULATED, process, reserve

_MIB = 1 << 20
_SIZE: Final = 32 * _MIB
_KSM: Final = "/sys/kernel/mm/ksm"
_GIGANTIC: Final = "/sys/kernel/mm/hugepages/hugepages-1048576kB/nr_hugepages"


def movable_in_use(guest: Guest) -> float:
    """Return how much of the movable memory is in use; all of that is on DIMMs."""
    zone = guest.read("/proc/zoneinfo").partition("Movable")[2]
    free, present = (
        int(found[1]) for found in (re.search(rf"{word} +(\d+)", zone) for word in ("pages free", "present")) if found
    )
    return 1 - free / present


def await_use(guest: Guest, share: float, deadline: Deadline) -> None:
    """Wait until so much of the movable memory is in use; of a load that comes and goes it is now and then."""
    while (used := movable_in_use(guest)) < share:
        deadline.require(f"the guest to use {share:.1%} of its movable memory", f"it uses {used:.1%}")


@contextmanager
def locked(guest: Guest) -> Iterator[None]:
    with process(guest, reserve(_SIZE, LOCKED | POPULATED)):
        assert guest.memory.info("Mlocked") >= _SIZE
        yield


@contextmanager
def transparent_huge_pages(guest: Guest) -> Iterator[None]:
    with process(guest, reserve(_SIZE), (MADVISE, ADDRESS, _SIZE, HUGEPAGE), (MADVISE, ADDRESS, _SIZE, POPULATE_WRITE)):
        assert guest.memory.info("AnonHugePages") >= _SIZE // 2
        yield


@contextmanager
def huge_pages(guest: Guest, spare: int = 0) -> Iterator[None]:
    """Use huge pages. :param spare: so many bytes more of them stay free."""
    count = (_SIZE + spare) // guest.memory.info("Hugepagesize")
    guest.run(f"echo {count} > /proc/sys/vm/nr_hugepages").check()
    with process(guest, reserve(_SIZE, HUGE | POPULATED)):
        assert guest.memory.info("HugePages_Total") == count
        assert guest.memory.info("HugePages_Free") == spare // guest.memory.info("Hugepagesize")
        yield
    guest.run("echo 0 > /proc/sys/vm/nr_hugepages").check()


@contextmanager
def shared_pages(guest: Guest) -> Iterator[None]:
    """Merge equal pages (KSM): nearly all of the process's become one."""
    guest.run(f"cd {_KSM} && echo 0 > sleep_millisecs && echo 100000 > pages_to_scan && echo 1 > run").check()
    # Of a huge page that is split for it, Linux 6.12 drops the parts that hold nothing but zeroes.
    advice = (MERGEABLE, NOHUGEPAGE, POPULATE_WRITE)
    with process(guest, reserve(_SIZE), *((MADVISE, ADDRESS, _SIZE, what) for what in advice)):
        guest.run(f"cd {_KSM}; until test $(cat pages_sharing) -ge 256; do usleep 10000; done").check()
        yield


@contextmanager
def tmpfs(guest: Guest) -> Iterator[None]:
    guest.run(
        f"mount -t tmpfs none /mnt && head -c {_SIZE // 4} /dev/urandom > /mnt/one && cat /mnt/one /mnt/one /mnt/one > /mnt/three"
    ).check()
    before = guest.run("md5sum /mnt/*").check().stdout
    yield
    assert guest.run("md5sum /mnt/*").check().stdout == before


@contextmanager
def page_cache_storm(guest: Guest) -> Iterator[None]:
    # A file's: what the kernel keeps of a bare disk stays out of memory that can go.
    guest.run("modprobe loop; modprobe crc32c_generic; modprobe ext4")
    guest.run(
        f"truncate -s {4 * _SIZE} /tmp/disk && losetup /dev/loop0 /tmp/disk && mke2fs /dev/loop0 > /dev/null && "
        f"mount -t ext4 /dev/loop0 /mnt && truncate -s {3 * _SIZE} /mnt/file"
    ).check()
    with in_background(guest, "dd if=/mnt/file of=/dev/null bs=1M && echo 1 > /proc/sys/vm/drop_caches"):
        yield


@contextmanager
def processes(guest: Guest) -> Iterator[None]:
    """Come and go with memory of their own, some of it shared with their parents."""
    started = "set --; for n in 1 2 3 4; do dd if=/dev/zero of=/tmp/none$n bs=8M count=2 & set -- $* $!; done"
    with in_background(guest, f"{started}; wait $1 && wait $2 && wait $3 && wait $4"):
        yield


Load = Callable[[Guest], AbstractContextManager[None]]
LOADS: tuple[Load, ...] = (locked, transparent_huge_pages, huge_pages, shared_pages, tmpfs, page_cache_storm, processes)


@pytest.mark.parametrize("load", LOADS, ids=lambda load: load.__name__.replace("_", " "))
def test_a_dimm_goes_while_its_memory_is_used(machine: PseriesMachine, guest: Guest, contract: Contract, load: Load) -> None:
    """M11, M44: what is on it moves elsewhere."""
    # Used huge pages move into the next LMB, which then stays now and then [L 6.1: -EBUSY].
    dimm = machine.dimms.plug(256 if load is huge_pages else 512)
    with load(guest):
        # What is left of pages that are shared is too little to be told from what is there anyway.
        if load is not shared_pages:
            await_use(guest, _SIZE / (dimm.size * _MIB) / 2, Deadline(machine.budgets.command))
        assert dimm.unplug() == contract.removal(dimm)


def test_huge_pages_to_spare_keep_a_dimm_for_ever(machine: PseriesMachine, guest: Guest, contract: Contract) -> None:
    """M44: used ones move to free ones, and Linux 6.1 and 6.12 find them in the LMB again. It can go when they are given back."""
    dimm = machine.dimms.plug()
    with huge_pages(guest, spare=_SIZE // 4):
        attempt = unplug_once_begun(dimm, 1)
        assert (attempt.outcome, attempt.cause, attempt.waiting) == (Outcome.PENDING, Silence.STILL_WORKING, True)
    attempt = dimm.follow(attempt)
    if attempt.outcome is not Outcome.REMOVED:
        # One that is given back while it moves may end the guest's try: -EBUSY of dissolve_free_hugetlb_folio [L 6.12: 3 of 84].
        assert attempt == contract.silence(dimm, cause="first LMB refused")
        attempt = tried_again(guest, dimm, attempt)
    assert attempt == contract.removal(dimm)


def tried_again(guest: Guest, dimm: Dimm, attempt: Attempt) -> Attempt:
    """Have the guest try again what it gave up, of its own accord: QEMU is waiting still."""
    for index in dimm.drcs:
        guest.memory.remove(index)
    return dimm.follow(attempt)


def test_a_gigantic_page_goes_with_its_dimm_or_keeps_it(machine: PseriesMachine, guest: Guest, contract: Contract) -> None:
    """M44: free, Linux 6.1 neither moves it nor breaks it up, and the DIMM stays; Linux 6.12 gives up both."""
    if guest.run(f"test -e {_GIGANTIC}").status:
        pytest.skip("this guest's processor has no pages of 1 GiB")
    dimm = machine.dimms.plug(1024)
    for block in dimm.blocks:
        guest.memory.give_to_kernel(block)
    guest.run(f"echo 1 > {_GIGANTIC} && grep -x 1 {_GIGANTIC}").check()
    attempt = dimm.unplug()
    if attempt.outcome is Outcome.REMOVED:
        assert attempt == contract.removal(dimm)
        return
    assert attempt == contract.silence(dimm, cause="first LMB refused")
    guest.run(f"echo 0 > {_GIGANTIC}").check()
    assert tried_again(guest, dimm, attempt) == contract.removal(dimm)


@pytest.mark.spapr(start="boot", kernel_args="crashkernel=192M")
@pytest.mark.spapr_slow
def test_a_dimm_goes_beside_a_crash_kernels_memory_and_an_inflated_balloon(
    machine: PseriesMachine, guest: Guest, contract: Contract
) -> None:
    """M44: booted, not cloned: a balloon gives the host's memory back, which a clone has in common with others."""
    assert int(guest.read("/sys/kernel/kexec_crash_size")) == 192 * _MIB
    guest.run("modprobe virtio_balloon").check()
    machine.pci.plug("virtio-balloon-pci")
    dimm = machine.dimms.plug(512)
    total = machine.qmp.execute("query-balloon")["actual"]
    since, wanted = machine.timeline.mark(), total - 128 * _MIB
    machine.qmp.execute("balloon", {"value": wanted})
    machine.timeline.wait(
        lambda record: (
            True if record.event == "BALLOON_CHANGE" and record.data and record.data["data"]["actual"] == wanted else None
        ),
        since=since,
        deadline=Deadline(machine.budgets.command),
        what="the balloon to be inflated",
    )
    assert dimm.unplug() == contract.removal(dimm)
