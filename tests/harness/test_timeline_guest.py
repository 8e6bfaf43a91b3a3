"""What the timeline's page and the text of failures say of connectors, held against QEMU's own state of them."""

from __future__ import annotations

import pytest

from pytest_spapr import Guest, Outcome, PseriesMachine
from pytest_spapr.hotplug.device import Device
from pytest_spapr.hotplug.drc import connector_states
from pytest_spapr.hotplug.drc_model import State
from pytest_spapr.qemu.vmstate import device_state
from pytest_spapr.report.timeline.bars import bars, last_states


def shown(machine: PseriesMachine, *devices: Device) -> dict[int, State | None]:
    """Return the last states of the devices' connectors as the traces tell them."""
    states = last_states(machine.timeline.since(), machine.build.features)
    return {index: states[index] for device in devices for index in device.drcs}


def kept(machine: PseriesMachine, *devices: Device) -> dict[int, State | None]:
    """Return the same as QEMU has them, which keeps nothing of a device that is in the guest's hands, and of one that is gone."""
    state = device_state(machine.qmp)
    assert state is not None
    known = connector_states(state)
    return {
        index: known.get(index, State.EMPTY if device.qemu_presence() == "absent" else State.CONFIGURED)
        for device in devices
        for index in device.drcs
    }


def test_a_refused_core_is_shown_as_qemu_has_it(machine: PseriesMachine, guest: Guest) -> None:
    """Pending still where QEMU hears no refusal."""
    core = machine.cores.plug()
    assert shown(machine, core) == kept(machine, core) == {core.drcs[0]: State.CONFIGURED}
    with guest.cpus.offline(0):
        core.unplug()
    assert shown(machine, core) == kept(machine, core)


@pytest.mark.parametrize("migrated", [False, True], ids=["", "after a migration"])
def test_what_goes_stays_and_goes_with_a_reset_is_shown_as_qemu_has_it(
    machine: PseriesMachine, guest: Guest, migrated: bool
) -> None:
    dimm, card = machine.dimms.plug(size=512), machine.pci.plug(driver="virtio-rng-pci")
    if migrated:
        machine.migrate()
    indexes = (*dimm.drcs, *card.drcs)
    assert shown(machine, dimm, card) == kept(machine, dimm, card) == dict.fromkeys(indexes, State.CONFIGURED)
    assert dimm.unplug().outcome is Outcome.REMOVED
    with guest.rtas_errd.killed():
        assert card.unplug().outcome is Outcome.PENDING
        assert shown(machine, dimm, card) == kept(machine, dimm, card)
        assert shown(machine, card) == {card.drcs[0]: State.CONFIGURED_PENDING}
        machine.reset(wait=False)
    assert shown(machine, dimm, card) == kept(machine, dimm, card) == dict.fromkeys(indexes, State.EMPTY)
    assert {bar.index for bar in bars(machine.timeline.since(), machine.build.features)} == set(indexes)
