"""What a real QEMU's connectors go through, as it is put on record. No guest runs here."""

from __future__ import annotations

import pytest

from pytest_spapr import Deadline, LaunchMachine, Record
from pytest_spapr.coverage import connectors
from pytest_spapr.hotplug.drc import traced


def test_resets_are_on_record_of_what_had_a_device(launch_machine: LaunchMachine) -> None:
    """One makes ready what was plugged, another one removes what is pending; of hundreds that are empty nothing is said."""
    machine = launch_machine(image=None, boot=False)
    if "unplug-timer" in machine.build.features:
        pytest.skip(f"{machine.build.version_text} has a time limit, which is not on record")
    connectors.watch(machine)
    core = machine.cores.plug()
    seen = 0

    def second(record: Record) -> bool | None:
        nonlocal seen
        seen += traced(record, "spapr_drc_reset") == core.drcs[0]
        return True if seen == 2 else None

    machine.reset(wait=False)
    core.unplug()
    machine.reset(wait=False)
    # The traces come through another pipe than the events.
    machine.timeline.wait(second, since=0, deadline=Deadline(machine.budgets.qmp), what="the trace of the second reset")
    found = connectors.driven(machine)["CPU"]
    assert found["empty"] == {"attach": 1}
    assert found["unusable"] == {"reset": 1}
    assert found["configured, pending"] == {"reset": 1}
    # The boot core's, and what was asked of the other one.
    assert found["configured"].keys() == {"reset", "unplug"}
    assert found["configured"]["unplug"] == 1
    assert len([record for record in machine.timeline.since() if traced(record, "spapr_drc_reset")]) < 20
