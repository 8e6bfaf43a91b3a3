"""What a QEMU does with a passed-through device while no guest runs: its known defects, each of which is noticed when it is mended."""

from __future__ import annotations

import pytest

from pytest_spapr import LaunchMachine, PseriesMachine, QemuBuild
from pytest_spapr.errors import MachineError
from pytest_spapr.hotplug.vfio import PHB
from pytest_spapr.qemu.passthrough import DRIVER, lone_container_aborts


@pytest.fixture
def machine(launch_machine: LaunchMachine, qemu_build: QemuBuild) -> PseriesMachine:
    """A machine at ``-S`` with a PHB for passed-through devices."""
    if DRIVER not in qemu_build.devices:
        pytest.skip(f"{qemu_build.version_text} has no {DRIVER}")
    return launch_machine(image=None, boot=False, qemu_args=PHB)


@pytest.mark.spapr_defect("vfio-lone-container")
def test_a_machine_with_one_passed_through_device_starts(qemu_build: QemuBuild) -> None:
    if DRIVER not in qemu_build.devices:
        pytest.skip(f"{qemu_build.version_text} has no {DRIVER}")
    assert not lone_container_aborts(qemu_build.command, qemu_build.env)


@pytest.mark.spapr_defect("vfio-msix-removal")
def test_a_passed_through_device_with_msix_is_removed(machine: PseriesMachine) -> None:
    (disk,) = machine.vfio.plug(model="nvme")
    since = machine.timeline.mark()
    machine.qmp.execute("device_del", {"id": disk.id})
    disk.await_disconnect(since)
    assert machine.status() == "prelaunch"


@pytest.mark.spapr_defect("vfio-migration")
def test_a_passed_through_device_blocks_migration(machine: PseriesMachine) -> None:
    machine.vfio.plug()
    assert machine.qmp.execute("query-migrate").get("blocked-reasons")


def test_a_device_without_a_guest_comes_and_goes(machine: PseriesMachine) -> None:
    """Never configured, it goes at once; nothing of it stays behind."""
    (uart,) = machine.vfio.plug()
    assert uart.peer.connected
    since = machine.timeline.mark()
    machine.qmp.execute("device_del", {"id": uart.id})
    uart.await_disconnect(since)
    machine.vfio.clear()
    assert machine.vfio.ballast == []


def test_a_machine_that_quits_leaves_no_server_behind(machine: PseriesMachine) -> None:
    (uart,) = machine.vfio.plug()
    machine.quit()
    assert machine.process.exit_status == 0
    with pytest.raises(MachineError, match="has ended"):
        uart.vanish()
