"""A machine goes back to what it was: a snapshot in a disk of its own, which loads into the same QEMU."""

from __future__ import annotations

from pathlib import Path

import pytest

from pytest_spapr import Contract, Guest, Kind, PseriesMachine

from .conftest import ToldRefusal
from .disks import MIB, create_qcow2
from .kinds import plug, silenced


def give_disk(machine: PseriesMachine, path: Path) -> None:
    """Give QEMU a disk that can hold snapshots; the guest does not see it."""
    create_qcow2(machine, path, MIB)
    # A clone was started with it on, and its memory is no file's.
    machine.qmp.execute("migrate-set-capabilities", {"capabilities": [{"capability": "x-ignore-shared", "state": False}]})


def command(machine: PseriesMachine, line: str) -> None:
    """Run a line of the human monitor that says nothing when it has done its work, but for what TCG lacks."""
    said = [word for word in machine.qmp.hmp(line).splitlines() if word.strip() and "TCG doesn't support" not in word]
    assert said == []


def test_a_request_is_pending_again_where_its_snapshot_is_loaded(
    machine: PseriesMachine, guest: Guest, contract: Contract, told_refusal: ToldRefusal, tmp_path: Path
) -> None:
    """C43, P31: the connector and its waiting are in the snapshot: the guest refuses once more, as it did, and is heard once more."""
    give_disk(machine, tmp_path / "disk.qcow2")
    core, card = machine.cores.plug(), machine.pci.plug("virtio-rng-pci")
    refusal = told_refusal(core, "last online CPU")
    with guest.cpus.offline(0):
        with machine.paused():
            attempt = core.unplug()
            assert attempt == contract.silence(core, cause="machine paused")
            command(machine, "savevm pending")
        assert core.follow(attempt) == refusal
        guest.disconnect()
        machine.stop()
        command(machine, "loadvm pending")
        assert core.waiting
        since = machine.timeline.mark()
        machine.cont()
        machine.await_records(lambda record: record.event == "DEVICE_UNPLUG_GUEST_ERROR", 1, since, "the refusal")
        guest.settle()
    assert core.configured
    assert card.configured
    for device in (card, core):
        assert device.unplug() == contract.removal(device)


@pytest.mark.spapr_defect("loadvm-pending-unplug")
@pytest.mark.parametrize("kind", [Kind.DIMM, pytest.param(Kind.PCI, marks=pytest.mark.spapr_slow)], ids=str)
def test_a_snapshot_can_be_loaded_while_its_request_is_pending(machine: PseriesMachine, kind: Kind, tmp_path: Path) -> None:
    """C43, P31: nothing has changed since it was taken, but QEMU's reset before the load removes the device that the snapshot has."""
    give_disk(machine, tmp_path / "disk.qcow2")
    device = plug(machine, kind)
    with silenced(machine, kind):
        device.unplug()
        machine.stop()
        command(machine, "savevm pending")
        command(machine, "loadvm pending")
        assert device.waiting
