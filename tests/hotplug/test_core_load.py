"""Cores under load, and the guest's clock."""

from __future__ import annotations

import time
from typing import NamedTuple

from pytest_spapr import Contract, Guest, PseriesMachine

_LOADS = {
    "cpu": "while :; do :; done",
    "memory": "while :; do dd if=/dev/zero of=/run/load bs=1M count=32; done",
    "disk": "while :; do dd if=/dev/vda of=/dev/null bs=1M iflag=direct; done",
}


class Done(NamedTuple):
    """What a guest has done since its boot. :ivar faults: minor page faults. :ivar sectors: read from its disk."""

    faults: int
    sectors: int


def done(guest: Guest) -> Done:
    words = guest.ask("sed -n 's/^pgfault //p' /proc/vmstat; cat /sys/block/vda/stat").check().stdout.split()
    return Done(int(words[0]), int(words[3]))


def busy_ticks(guest: Guest, cpu: int) -> int:
    """Return how long processes have run on a CPU, in 1/100 s."""
    user, nice, system = guest.ask(f"grep '^cpu{cpu} ' /proc/stat").check().stdout.split()[1:4]
    return int(user) + int(nice) + int(system)


def test_cores_come_and_go_under_load(machine: PseriesMachine, guest: Guest, contract: Contract) -> None:
    """C10, C27, C29: of CPU, memory and disk, which also runs on the cores that come and goes on when they have gone; offline, too."""
    machine.qmp.execute("blockdev-add", {"driver": "null-co", "node-name": "load", "size": 1 << 30, "read-zeroes": True})
    machine.pci.plug("virtio-blk-pci", drive="load")
    guest.run("; ".join(f"{{ {load}; }} > /dev/null 2>&1 &" for load in _LOADS.values()).replace("&;", "&")).check()
    before = done(guest)
    cores = [machine.cores.plug() for _ in range(2)]
    for cpu in (1, 2):
        guest.ask(f"set --; until test ${{2:-0}} -ge 10; do set -- $(grep '^cpu{cpu} ' /proc/stat); done").check()
        assert busy_ticks(guest, cpu) >= 10
    between = done(guest)
    guest.cpus.set_online(2, False)
    for core in cores:
        assert core.unplug() == contract.removal(core)
    assert guest.cpus.present() == {0}
    guest.ask(f"until test $(sed -n 's/^pgfault //p' /proc/vmstat) -gt {between.faults}; do :; done").check()
    after = done(guest)
    assert before.sectors < between.sectors < after.sectors
    assert before.faults < between.faults < after.faults


class Offset(NamedTuple):
    """How far a guest's clock is ahead of the host's, in seconds: at least and at most."""

    least: float
    most: float


def offset(guest: Guest, cpu: int) -> Offset:
    """Ask a CPU of the guest for the time since its boot (in 1/100 s), and the host before and after it."""
    before = time.monotonic()
    told = float(guest.ask(f"taskset {1 << cpu:x} cat /proc/uptime").check().stdout.split()[0])
    return Offset(told - time.monotonic(), told + 0.01 - before)


def test_the_clock_does_not_drift_when_cores_come(machine: PseriesMachine, guest: Guest) -> None:
    """C30: each CPU tells it as far from the host's as it was, as exactly as can be asked: to tens of ms on an idle host."""
    bounds = [offset(guest, 0) for _ in range(5)]
    for _ in range(3):
        (cpu,) = machine.cores.plug().guest_cpus()
        bounds += [offset(guest, cpu), offset(guest, 0)]
    # All of them hold of one and the same offset.
    assert max(bound.least for bound in bounds) <= min(bound.most for bound in bounds)
    assert min(bound.most - bound.least for bound in bounds) < 0.5
