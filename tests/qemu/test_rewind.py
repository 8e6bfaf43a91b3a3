"""A machine is taken back to a moment, as often as one likes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from pytest_spapr import Lane, LaunchMachine, MachineError, PseriesMachine, QemuBuild
from pytest_spapr.nested.rewind import Rewind


@pytest.fixture(autouse=True)
def snapshots(qemu_build: QemuBuild) -> None:
    """Only builds that save a machine by a QMP command."""
    if qemu_build.version < (6,):
        pytest.skip(f"{qemu_build.version_text} has no snapshot-save: QEMU 6.0 and later have it")


def registers(machine: PseriesMachine) -> str:
    """Return the CPU's registers but for the MSR, which loses its bit ME on the way [11.1.3, not 7.2.22]."""
    return re.sub(r"MSR \w+", "", machine.qmp.hmp("info registers"))


def test_a_machine_goes_back_to_when_it_was_saved_each_time(launch_machine: LaunchMachine, tmp_path: Path) -> None:
    machine = launch_machine(image=None)
    rewind = Rewind(machine.qmp, machine.timeline, tmp_path / "machine.qcow2")
    assert list(tmp_path.iterdir()) == []
    machine.stop()
    saved = registers(machine)
    rewind.save()
    for _ in range(2):
        since = machine.timeline.mark()
        machine.qmp.execute("system_reset")
        machine.cont()
        machine.await_records(lambda record: record.lane is Lane.CONSOLE, 1, since, "lines of the firmware")
        machine.stop()
        assert registers(machine) != saved
        rewind.back()
        assert registers(machine) == saved
        assert machine.status() == "paused"


def test_a_machine_that_was_not_saved_cannot_go_back(launch_machine: LaunchMachine, tmp_path: Path) -> None:
    machine = launch_machine(image=None, boot=False)
    rewind = Rewind(machine.qmp, machine.timeline, tmp_path / "machine.qcow2")
    with pytest.raises(MachineError, match=r"snapshot-load: .*saved"):
        rewind.back()
