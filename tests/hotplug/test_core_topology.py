"""Many cores, cores with several threads, and where the guest sees them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest

from pytest_spapr import Contract, Guest, LaunchFailed, LaunchMachine, PseriesMachine, QmpRefused
from pytest_spapr.guest.shell import parse_ranges
from pytest_spapr.hotplug.cores import Core

from .inventory import nothing_changes
from .tasks import busy
from .threads import start_with_threads


def unplug_together(machine: PseriesMachine, cores: Iterable[Core], contract: Contract) -> None:
    """Ask for the removal of all of these before the guest has heard of one, and see each of them go."""
    with machine.paused():
        attempts = [(core, core.unplug()) for core in cores]
    for core, attempt in attempts:
        assert core.follow(attempt) == contract.removal(core)


def vcpus(machine: PseriesMachine) -> int:
    return len(machine.qmp.execute("query-cpus-fast"))


def topology(guest: Guest) -> dict[str, list[str]]:
    """Return what the guest's sysfs says of the place of its CPUs, in order of their numbers."""
    places = [f"/sys/devices/system/cpu/cpu{cpu}/topology" for cpu in sorted(guest.cpus.online())]
    names = ("physical_package_id", "core_id", "thread_siblings_list")
    return {name: guest.ask(f"cat {' '.join(f'{place}/{name}' for place in places)}").check().stdout.split() for name in names}


SHAPES = [
    pytest.param({"max_cpus": 2, "threads": 2}, id="2 threads"),
    pytest.param({"max_cpus": 8}, id="8 cores", marks=pytest.mark.spapr_slow),
    pytest.param({"max_cpus": 4, "qemu_args": ("-smp", "sockets=4,cores=1")}, id="4 sockets", marks=pytest.mark.spapr_slow),
    pytest.param({"max_cpus": 32}, id="32 cores", marks=pytest.mark.spapr_slow),
    pytest.param({"max_cpus": 64}, id="64 cores", marks=pytest.mark.spapr_slow),
    pytest.param({"max_cpus": 2, "threads": 4}, id="4 threads", marks=pytest.mark.spapr_slow),
    pytest.param({"max_cpus": 2, "threads": 8}, id="8 threads", marks=pytest.mark.spapr_slow),
    pytest.param({"max_cpus": 8, "threads": 8}, id="8 cores of 8 threads", marks=pytest.mark.spapr_slow),
    pytest.param({"max_cpus": 32, "qemu_args": ("-smp", "sockets=32,cores=1")}, id="32 sockets", marks=pytest.mark.spapr_slow),
]


@pytest.mark.parametrize("shape", SHAPES)
def test_every_slot_is_filled_and_emptied(launch_machine: LaunchMachine, contract: Contract, shape: dict[str, Any]) -> None:
    """C01, C02, C03, C15: both sides count, and the topology is the same after a reboot; all go at once, and stay away."""
    machine = start_with_threads(launch_machine, **shape)
    guest, threads = machine.guest, machine.spec.threads
    cores = []
    for count in range(2, machine.spec.max_cpus + 1):
        cores.append(machine.cores.plug())
        assert guest.cpus.online() == set(range(count * threads))
        assert vcpus(machine) == count * threads
    seen = topology(guest)
    assert len(set(seen["core_id"])) == machine.spec.max_cpus
    assert len(set(seen["physical_package_id"])) == (machine.spec.max_cpus if "qemu_args" in shape else 1)
    assert all(cpus == (first if threads == 1 else f"{first}-{last}") for cpus, first, last in _siblings(seen, threads))
    machine.reboot()
    assert topology(guest) == seen
    unplug_together(machine, cores, contract)
    assert guest.cpus.present() == set(range(threads))
    assert vcpus(machine) == threads


def _siblings(seen: dict[str, list[str]], threads: int) -> Iterable[tuple[str, str, str]]:
    """Yield what the guest says of each CPU's siblings, with the first and the last one of its core."""
    for cpu, cpus in enumerate(seen["thread_siblings_list"]):
        first = cpu // threads * threads
        yield cpus, str(first), str(first + threads - 1)


@pytest.mark.spapr_slow
def test_the_number_of_threads_is_switched_around_a_plug(launch_machine: LaunchMachine, contract: Contract) -> None:
    """C09, C10, C31: a core that comes later has those that its kernel knows to be wanted; busy or offline ones keep none."""
    machine = start_with_threads(launch_machine, threads=2, max_cpus=4)
    guest = machine.guest
    # Linux 6.6 and later know the number themselves (powerpc's smt/control); before, a tool takes CPUs offline.
    control = "/sys/devices/system/cpu/smt/control"
    known = guest.read(control) != "notimplemented"
    guest.run(f"echo off > {control}" if known else "ppc64_cpu --smt=off").check()
    assert guest.cpus.online() == {0}
    core = machine.cores.plug()
    assert core.guest_cpus() == {2, 3}
    assert guest.cpus.online() == ({0, 2} if known else {0, 2, 3})
    guest.run(f"echo on > {control}" if known else "ppc64_cpu --smt=on").check()
    assert guest.cpus.online() == {0, 1, 2, 3}
    with busy(guest, 2), busy(guest, 3):
        assert core.unplug() == contract.removal(core)
    again = machine.cores.plug()
    assert guest.cpus.online() == {0, 1, 2, 3}
    with guest.cpus.offline(3):
        assert guest.cpus.online() == {0, 1, 2}
        assert vcpus(machine) == 4
    assert guest.cpus.online() == {0, 1, 2, 3}
    guest.cpus.set_online(3, False)
    assert again.unplug() == contract.removal(again)
    assert guest.cpus.present() == {0, 1}


@pytest.mark.parametrize(
    ("rounds", "cores"), [pytest.param(*numbers, marks=pytest.mark.spapr_slow) for numbers in ((2, 3), (12, 8))]
)
def test_slots_are_filled_and_emptied_again_and_again(
    launch_machine: LaunchMachine, contract: Contract, rounds: int, cores: int
) -> None:
    """C03, C27: with two busy tasks all the time. Under TCG a machine has no more plugs than slots (tcg-contexts-run-out)."""
    machine = launch_machine(max_cpus=rounds * cores + 1)
    guest = machine.guest
    guest.run("for i in 1 2; do { while :; do :; done & } > /dev/null 2>&1; done").check()
    for _ in range(rounds):
        plugged = [machine.cores.plug() for _ in range(cores)]
        assert guest.cpus.online() == set(range(cores + 1))
        unplug_together(machine, plugged, contract)
        assert guest.cpus.present() == {0}


@pytest.mark.spapr(
    max_cpus=4,
    qemu_args=(
        *("-object", "memory-backend-ram,id=all,size=1024M", "-numa", "node,nodeid=0,memdev=all", "-numa", "node,nodeid=1"),
        *(word for core in range(4) for word in ("-numa", f"cpu,node-id={core % 2},core-id={core}")),
    ),
)
def test_a_core_comes_to_its_numa_node_and_leaves_it(launch_machine: LaunchMachine, contract: Contract) -> None:
    """C11: one with memory, one that has nothing but its cores; and QEMU lets a core have no other node than its own."""
    try:
        machine = launch_machine()
    except LaunchFailed as error:
        # QEMU 5.2, as long as none of its cores is there.
        if said := next((line for line in error.stderr if "Memory-less/cpu-less nodes are not supported" in line), None):
            pytest.skip(said)
        raise
    guest = machine.guest
    other: dict[str, Any] = {"node-id": 1}
    own: dict[str, Any] = {"node-id": 0}
    with nothing_changes(machine), pytest.raises(QmpRefused, match="invalid node-id, must be 0"):
        machine.cores.plug(2, **other)
    second = machine.cores.plug(2, **own)
    first, last = machine.cores.plug(1), machine.cores.plug(3)
    assert [slot["props"]["node-id"] for slot in machine.cores.slots()] == [0, 1, 0, 1]
    assert _node(guest, 0) == {0} | second.guest_cpus()
    assert _node(guest, 1) == first.guest_cpus() | last.guest_cpus()
    for core in (last, second):
        assert core.unplug() == contract.removal(core)
    assert _node(guest, 0) == {0}
    assert _node(guest, 1) == first.guest_cpus()
    assert first.unplug() == contract.removal(first)
    assert _node(guest, 1) == set()


def _node(guest: Guest, node: int) -> frozenset[int]:
    """Return the CPUs of a NUMA node. One that has nothing left may be gone."""
    return parse_ranges(guest.ask(f"cat /sys/devices/system/node/node{node}/cpulist || true").check().stdout)
