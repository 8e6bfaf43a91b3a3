"""The devices' state as a real QEMU writes it. No guest runs here: what was there from the start waits for one."""

from __future__ import annotations

import pytest

from pytest_spapr import LaunchMachine, Outcome, PseriesMachine, QmpRefused
from pytest_spapr.hotplug import drc
from pytest_spapr.qemu.vmstate import device_state
from pytest_spapr.timeline import Lane

_BOOT_PHB = 0x20000000
NOBODY: set[int] = set()


@pytest.fixture
def machine(launch_machine: LaunchMachine) -> PseriesMachine:
    """A machine at ``-S``, with a core, a DIMM of two LMBs and a PCI device that QEMU does not take back at once."""
    dimm = ("-object", "memory-backend-ram,id=mm,size=512M", "-device", "pc-dimm,id=dimm,memdev=mm")
    card = ("-device", "virtio-rng-pci,id=card,bus=pci.0,addr=0x3")
    return launch_machine(image=None, boot=False, cpus=2, qemu_args=(*dimm, *card))


def waited_for(machine: PseriesMachine) -> set[int] | None:
    state = device_state(machine.qmp)
    return None if state is None else set(drc.unplug_requested(state))


def test_each_kind_of_device_that_is_waited_for_is_found(machine: PseriesMachine) -> None:
    """The DRC indexes are those of QEMU's own trace, taken when the devices were attached at the start."""
    attached = {
        record.data["drc"] for record in machine.timeline.since(0, Lane.DRC) if record.data and record.data["event"] == drc.ATTACH
    }
    core, card, first, second = sorted(attached - {drc.CORE_TYPE, _BOOT_PHB})
    assert waited_for(machine) == NOBODY
    devices = {machine.cores.boot_core(1).id: {core}, "card": {card}}
    if "memory-unplug-before-cas" in machine.build.features:
        devices["dimm"] = {first, second}
    expected: set[int] = set()
    for device, connectors in devices.items():
        machine.qmp.execute("device_del", {"id": device})
        expected |= connectors
        assert waited_for(machine) == expected


def test_a_core_of_the_boot_has_its_own_connector(machine: PseriesMachine) -> None:
    core = machine.cores.boot_core(1)
    attempt = core.unplug()
    assert (attempt.outcome, attempt.waiting) == (Outcome.PENDING, True)
    assert waited_for(machine) == set(core.drcs)


def test_reading_changes_nothing(launch_machine: LaunchMachine) -> None:
    """Neither the run state nor the events, in a machine that runs and in one that is paused."""
    machine = launch_machine(image=None)
    sets = machine.qmp.execute("query-fdsets")
    since = machine.timeline.mark()
    for _ in range(20):
        assert waited_for(machine) == NOBODY
        assert machine.status() == "running"
    assert machine.qmp.execute("query-fdsets") == sets
    machine.stop()
    for _ in range(20):
        assert waited_for(machine) == NOBODY
        assert machine.status() == "paused"
    assert [record.event for record in machine.timeline.since(since, Lane.EVENT)] == ["STOP"]


def test_a_disk_stays_the_machines_own(launch_machine: LaunchMachine) -> None:
    """``live`` would have a machine that is paused give it up, and fail when it goes on."""
    disk = ("-blockdev", "null-co,node-name=disk", "-device", "virtio-blk-pci,drive=disk")
    machine = launch_machine(image=None, qemu_args=disk)
    machine.stop()
    assert waited_for(machine) == NOBODY
    machine.cont()
    [node] = machine.qmp.execute("query-named-block-nodes")
    assert (node.get("active", True)) is True
    assert machine.status() == "running"


def test_a_machine_that_was_migrated_away_cannot_say(machine: PseriesMachine) -> None:
    core = machine.cores.boot_core(1)
    machine.save()
    assert device_state(machine.qmp) is None
    assert core.waiting is None


def test_a_qemu_that_refuses_cannot_say(machine: PseriesMachine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pytest_spapr.qemu.qmp.SAVE_DEVICES", "no-such-command")
    with pytest.raises(QmpRefused):
        device_state(machine.qmp)
    assert machine.cores.boot_core(1).waiting is None
