"""Resets, reboots, panics and the end, each with devices that came, are pending, or went half."""

from __future__ import annotations

import pytest

from pytest_spapr import Contract, Guest, Kind, Outcome, PseriesMachine

from .inventory import told
from .kinds import plug
from .moments import await_record

#: Those that a guest that has halted is asked for; a card is as they are, and takes longer to come.
ASKED = (Kind.CORE, Kind.DIMM)


@pytest.mark.parametrize("asked", ["before", "after"])
def test_a_panicked_guest_keeps_its_devices_until_the_reset(machine: PseriesMachine, contract: Contract, asked: str) -> None:
    """C44, M04, P30, X04: asked for before the panic or after it, nobody answers; the reset removes them, each told once."""
    devices = [plug(machine, kind) for kind in ASKED]
    since = machine.timeline.mark()
    if asked == "after":
        machine.panic()
        attempts = [device.unplug() for device in devices]
        assert all(one == contract.silence(device, cause="machine paused") for one, device in zip(attempts, devices, strict=True))
    else:
        with machine.paused():
            attempts = [device.unplug() for device in devices]
            machine.qmp.hmp("nmi")
        await_record(machine, since, "the guest's panic", lambda record: record.event == "GUEST_PANICKED")
    assert machine.status() == "guest-panicked"
    assert told(machine, since) == []
    assert all(device.waiting for device in devices)
    machine.reset()
    for device, attempt in zip(devices, attempts, strict=True):
        assert device.follow(attempt) == contract.after(device, what="reset")
    assert sorted(told(machine, since)) == sorted(device.id for device in devices)


def test_a_guest_that_panics_and_reboots_loses_what_was_pending(
    machine: PseriesMachine, guest: Guest, contract: Contract
) -> None:
    """C04, C44, M04, P30: no reset of ours; QEMU only notes the panic (-action panic=none), and the kernel reboots after a second."""
    if "set-action" not in machine.build.features:
        pytest.skip(f"{machine.build.version_text} stops at a panic: QEMU 6.0 and later can be told not to (set-action)")
    machine.qmp.execute("set-action", {"panic": "none"})
    guest.run("echo 1 >/proc/sys/kernel/panic").check()
    devices = [plug(machine, kind) for kind in (Kind.DIMM, Kind.PCI)]
    kept = [machine.cores.plug(), machine.dimms.plug()]
    since = machine.timeline.mark()
    with guest.memory.offline_refused(), guest.rtas_errd.killed():
        attempts = [device.unplug() for device in devices]
        machine.panic()
        reset = await_record(machine, since, "the reboot", lambda record: record.event == "RESET")
        machine.await_ready(reset.seq)
    assert all(device.configured for device in kept)
    for device, attempt in zip(devices, attempts, strict=True):
        assert device.follow(attempt) == contract.after(device, what="reset")
    assert sorted(told(machine, since)) == sorted(device.id for device in devices)


@pytest.mark.parametrize("how", ["by itself", "by the power button"])
def test_a_guest_with_added_devices_shuts_down(machine: PseriesMachine, guest: Guest, how: str) -> None:
    """C05, X04: it halts with them, what is asked for then waits, no event comes of its end, and the reset grants it."""
    devices = [plug(machine, kind) for kind in ASKED]
    since = machine.timeline.mark()
    if how == "by itself":
        guest.leave("poweroff -f")
    else:
        # What the kernel runs then; the default speaks to an init that this guest has not.
        guest.run("echo '/bin/poweroff -f' >/proc/sys/kernel/poweroff_cmd").check()
        guest.disconnect()
        machine.qmp.execute("system_powerdown")
    await_record(machine, since, "the guest's end", lambda record: record.event == "SHUTDOWN")
    attempt = devices[0].unplug()
    assert (attempt.outcome, attempt.asked) == (Outcome.PENDING, True)
    assert told(machine, since) == []
    machine.reset()
    assert [device.configured for device in devices] == [False, True]
    assert told(machine, since) == [devices[0].id]


@pytest.mark.parametrize("what", ["reset", pytest.param("migration", marks=pytest.mark.spapr_defect("dimm-part-migration"))])
def test_a_dimm_of_which_the_guest_gave_some_back_goes_whole(
    machine: PseriesMachine, guest: Guest, contract: Contract, what: str
) -> None:
    """M35: an LMB has gone before the first of the rest is refused. A boot removes it all; a move keeps what is left of it."""
    dimm = machine.dimms.plug(768)
    with guest.memory.offline_refused():
        attempt = dimm.unplug()
    guest.memory.remove(dimm.drcs[0])
    assert len(dimm.blocks) - sum(block in guest.memory.blocks() for block in dimm.blocks) == 1
    assert dimm.waiting
    since = machine.timeline.mark()
    if what == "migration":
        machine.migrate()
        for lmb in dimm.drcs[1:]:
            guest.memory.remove(lmb)
    else:
        machine.reset()
    promised = contract.after(dimm, what="migration" if what == "migration" else "reset")
    # By now the guest has given back all of it.
    assert dimm.follow(attempt, seconds=2) == promised
    assert told(machine, since) == [dimm.id]
    again = machine.dimms.plug(768)
    assert again.configured
