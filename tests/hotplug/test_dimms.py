"""DIMMs that the guest gives up."""

from __future__ import annotations

import pytest

from pytest_spapr import Contract, Guest, LaunchMachine, PseriesMachine, QmpRefused
from pytest_spapr.guest.memory import LMB

from .inventory import await_deleted, nothing_changes


@pytest.mark.parametrize("lmbs", [1, 2])
def test_a_dimm_comes_and_goes(machine: PseriesMachine, guest: Guest, contract: Contract, lmbs: int) -> None:
    """M01, M05, M39: the guest has the memory, and gives all of it back."""
    before = guest.memory.total()
    dimm = machine.dimms.plug(256 * lmbs)
    assert guest.memory.total() - before == lmbs * LMB
    assert dimm.unplug() == contract.removal(dimm)
    assert guest.memory.total() == before


def test_the_guest_is_interrupted_for_each_event(machine: PseriesMachine, guest: Guest) -> None:
    """M01: at once; else it would hear of it when it polls, every 30 s (``rtas_event_scan``), and be interrupted then."""
    since, before = machine.timeline.mark(), guest.hotplug_interrupts()
    dimm = machine.dimms.plug(wait=False)
    assert guest.hotplug_interrupts() == before + 1
    dimm.await_configured(since)
    machine.qmp.execute("device_del", {"id": dimm.id})
    assert guest.hotplug_interrupts() == before + 2
    await_deleted(machine, since, dimm.id)


def test_a_dimm_holds_nothing_that_cannot_be_moved(machine: PseriesMachine, guest: Guest) -> None:
    """Or else a removal is refused now and then, for reasons of the guest's own."""
    dimm = machine.dimms.plug(512)
    assert {guest.read(f"/sys/devices/system/memory/memory{block}/valid_zones") for block in dimm.blocks} == {"Movable"}


def test_the_backend_outlives_its_dimm_and_can_be_deleted(machine: PseriesMachine, contract: Contract) -> None:
    """M07, M41: a backend in use is kept by QEMU, also while its DIMM's unplug is pending."""
    dimm = machine.dimms.plug()
    in_use = "in use|which is mapped"
    with pytest.raises(QmpRefused, match=in_use):
        dimm.delete_backend()
    with machine.paused():
        attempt = dimm.unplug()
        assert attempt == contract.silence(dimm, cause="machine paused")
        with pytest.raises(QmpRefused, match=in_use):
            dimm.delete_backend()
    assert dimm.follow(attempt) == contract.removal(dimm)
    dimm.delete_backend()
    with pytest.raises(QmpRefused, match="not found"):
        dimm.delete_backend()


def test_the_middle_one_of_three_dimms_is_the_one_that_goes(machine: PseriesMachine, guest: Guest, contract: Contract) -> None:
    """M05, M38: what is too large for the hole goes behind the last one."""
    first, middle, last = (machine.dimms.plug() for _ in range(3))
    assert middle.unplug() == contract.removal(middle)
    assert first.configured
    assert last.configured
    larger = machine.dimms.plug(512)
    assert larger.blocks[0] > last.blocks[-1]
    assert larger.unplug() == contract.removal(larger)
    assert machine.dimms.plug().blocks == middle.blocks


def test_dimms_of_several_sizes_fill_the_slots_and_one_is_given_back(
    machine: PseriesMachine, guest: Guest, contract: Contract
) -> None:
    """M22, M39: found by the numbers of their slots, they go in any order."""
    before = guest.memory.total()
    dimms = [machine.dimms.plug(size) for size in (512, 256, 1024, 256)]
    assert len({block for dimm in dimms for block in dimm.blocks}) == 8
    with pytest.raises(QmpRefused, match="no free slots available"):
        machine.dimms.plug()
    last = machine.dimms.in_slot(3)
    assert last.unplug() == contract.removal(last)
    machine.dimms.plug(768)
    assert guest.memory.total() - before == 10 * LMB
    for slot in (2, 0, 3, 1):
        dimm = machine.dimms.in_slot(slot)
        assert dimm.unplug() == contract.removal(dimm)
    assert guest.memory.total() == before


@pytest.mark.spapr(numa=2)
def test_dimms_of_two_numa_nodes_are_theirs_also_after_a_reboot(machine: PseriesMachine, guest: Guest) -> None:
    """M01: each with all of its memory, online."""
    dimms = {0: machine.dimms.plug(512, node=0), 1: machine.dimms.plug(256, node=1)}
    before = guest.memory.total()
    for reboot in (False, True):
        if reboot:
            machine.reboot()
        places = guest.memory.nodes()
        assert {node: {places[block] for block in dimm.blocks} for node, dimm in dimms.items()} == {0: {0}, 1: {1}}
        assert all(dimm.configured for dimm in dimms.values())
    # The boot counts some of its own memory otherwise than the hotplug does.
    assert abs(guest.memory.total() - before) < LMB // 8


def test_only_the_highest_memory_of_a_boot_keeps_its_dimm(machine: PseriesMachine, contract: Contract) -> None:
    """M04, M37: Linux takes what it keeps of its boot from the top down; the DIMM below is given up."""
    lower, higher = machine.dimms.plug(), machine.dimms.plug()
    machine.reset()
    assert lower.unplug() == contract.removal(lower)
    assert higher.unplug() == contract.silence(higher, cause="memory of the boot")


@pytest.mark.spapr(kernel_args="movable_node")
@pytest.mark.spapr_slow
@pytest.mark.parametrize("count", [2, 32])
def test_every_slot_is_filled_with_a_reboot_between_and_emptied(
    launch_machine: LaunchMachine, contract: Contract, count: int
) -> None:
    """M01, M09, M22, M37: a guest that keeps its kernel out of the DIMMs (``movable_node``) gives up those of its boot, too."""
    machine = launch_machine(slots=count, max_memory=1024 + 256 * count)
    memory = machine.guest.memory
    for slot in range(count):
        machine.dimms.plug()
        if slot == count // 2 - 1:
            machine.reboot()
    with pytest.raises(QmpRefused, match="no free slots available"):
        machine.dimms.plug()
    zones, states = memory.zones(), memory.blocks()
    for slot in range(count):
        dimm = machine.dimms.in_slot(slot)
        assert {(zones[block], states[block]) for block in dimm.blocks} == {("Movable", "online")}
        assert dimm.unplug() == contract.removal(dimm)
    assert len(memory.blocks()) == 4


@pytest.mark.parametrize("cycles", [8, pytest.param(256, marks=pytest.mark.spapr_slow)])
def test_one_lmb_comes_and_goes_again_and_again(machine: PseriesMachine, guest: Guest, contract: Contract, cycles: int) -> None:
    """M08: nothing is left of it in the guest or in QEMU."""
    before = guest.memory.total()
    with nothing_changes(machine, but_events=True):
        for _ in range(cycles):
            dimm = machine.dimms.plug()
            assert dimm.unplug() == contract.removal(dimm)
            dimm.delete_backend()
    assert guest.memory.total() == before


@pytest.mark.spapr(
    kernel_args="movable_node",
    qemu_args="-object memory-backend-ram,id=cold-memory,size=512M -device pc-dimm,id=cold,memdev=cold-memory",
)
def test_a_dimm_of_the_command_line_goes(machine: PseriesMachine, guest: Guest, contract: Contract) -> None:
    """M06, M37: asked for while the machine stands still; of a guest that keeps its kernel out of it."""
    dimm = machine.dimms.in_slot(0)
    assert dimm.configured
    with machine.paused():
        attempt = dimm.unplug()
        assert attempt == contract.silence(dimm, cause="machine paused")
    assert dimm.follow(attempt) == contract.after(dimm, what="resume")
    assert len(guest.memory.blocks()) == 4
