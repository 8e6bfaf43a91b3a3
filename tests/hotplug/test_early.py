"""What is asked of a machine while its firmware runs, before any operating system listens."""

from __future__ import annotations

import pytest

from pytest_spapr import Contract, Guest, Kind, Lane, Outcome, PseriesMachine, QemuBuild
from pytest_spapr.hotplug.device import Device
from pytest_spapr.hotplug.expectation import Expectation

from .inventory import await_deleted, events_since, told
from .kinds import plug, slowly
from .moments import CAS, INIT, caught, reset_into_firmware

in_slof = pytest.mark.spapr(firmware="slof")
slow = pytest.mark.spapr_slow


@in_slof
@slowly(Kind.CORE, Kind.PHB)
def test_a_request_while_the_firmware_runs_is_granted_by_the_boot(
    machine: PseriesMachine, contract: Contract, qemu_build: QemuBuild, kind: Kind
) -> None:
    """C14, C39, M40, P30: SLOF knows nothing of hot-unplug; what is pending goes when Linux calls CAS, before it can have a say."""
    if kind is Kind.DIMM and "memory-unplug-before-cas" not in qemu_build.features:
        pytest.skip(f"{qemu_build.version_text} rejects it: see test_every_kind.py")
    device = plug(machine, kind)
    since = reset_into_firmware(machine)
    attempt = device.unplug()
    assert attempt == contract.removal(device)
    gone = await_deleted(machine, since, device.id)
    up = machine.await_records(lambda r: r.lane is Lane.SERVICE and r.text == "init: started", 1, since, "the guest's init")[0]
    assert gone.seq < up.seq


# Cores by themselves: of their removal a QEMU may die.
@in_slof
@pytest.mark.parametrize(
    "kinds", [pytest.param((Kind.CORE,), marks=slow), (Kind.DIMM, Kind.PCI, Kind.PHB)], ids=["core", "others"]
)
def test_what_comes_while_the_firmware_runs_goes_without_a_question(
    machine: PseriesMachine, contract: Contract, kinds: tuple[Kind, ...]
) -> None:
    """C39, M40, P30: neither SLOF nor the operating system after it ever hears of it; where QEMU rejects it, it is there."""
    since = reset_into_firmware(machine)
    # Or the firmware has done before all is asked.
    with machine.paused():
        devices = [plug(machine, kind, wait=False) for kind in kinds]
        attempts = [device.unplug() for device in devices]
    assert attempts == [contract.before_boot(device) for device in devices]
    machine.await_ready(since)
    assert [device.configured for device in devices] == [attempt.outcome is Outcome.REJECTED for attempt in attempts]


@in_slof
@pytest.mark.parametrize("kinds", [pytest.param((Kind.CORE,), marks=slow), (Kind.DIMM, Kind.PCI)], ids=["core", "others"])
def test_what_comes_while_the_firmware_runs_is_there_after_the_boot(
    machine: PseriesMachine, contract: Contract, kinds: tuple[Kind, ...]
) -> None:
    """C13, C39, M40, P30: as if it had been there from the start; and it can go, where what was there from the start can."""
    since = reset_into_firmware(machine)
    with machine.paused():
        devices = [plug(machine, kind, wait=False) for kind in kinds]
    machine.await_ready(since)
    for device in devices:
        assert device.configured
        assert device.unplug() == of_the_boot(contract, device)


# drmgr looks for 30 s for a card that has gone by then.
@pytest.mark.parametrize(
    ("moment", "kinds", "brief"),
    [
        (CAS, (Kind.CORE,), (Kind.CORE,)),
        pytest.param(CAS, (Kind.DIMM, Kind.PCI), (Kind.DIMM,), marks=slow),
        (INIT, (Kind.DIMM,), (Kind.DIMM,)),
        pytest.param(INIT, (Kind.CORE,), (Kind.CORE,), marks=slow),
        pytest.param(INIT, (Kind.PCI, Kind.PHB), (Kind.PCI, Kind.PHB), marks=slow),
    ],
)
def test_what_is_asked_for_as_linux_comes_up_is_kept_for_it(
    machine: PseriesMachine, contract: Contract, moment: str, kinds: tuple[Kind, ...], brief: tuple[Kind, ...]
) -> None:
    """C13, C14, C39, M40, P30, X04: removals, then additions, then what comes and goes at once, all before anybody listens.

    QEMU keeps the events until Linux asks for their interrupt, and Linux keeps those for rtas_errd. None is lost or told twice.
    """
    old = [plug(machine, kind) for kind in kinds]
    with caught(machine, moment):
        since = machine.timeline.mark()
        asked = [device.unplug() for device in old]
        new = [plug(machine, kind, wait=False) for kind in kinds]
        for kind in brief:
            device = plug(machine, kind, wait=False)
            assert device.unplug() == contract.unasked_removal(device)
    for device in new:
        device.await_configured(since)
    gone = []
    for device, attempt in zip(old, asked, strict=True):
        promised = of_the_boot(contract, device)
        assert attempt == contract.silence(device, cause="machine paused")
        assert device.follow(attempt) == promised
        gone += [device.id] * (promised.outcome is Outcome.REMOVED)
    assert sorted(told(machine, since)[len(brief) :]) == sorted(gone)
    # Only those that asked for it stay away after one more boot, a DIMM that Linux kept among them.
    machine.reset()
    assert all(device.configured for device in new)
    assert not any(device.configured for device in old)


@pytest.mark.parametrize("kind", [Kind.CORE, Kind.DIMM, pytest.param(Kind.PCI, marks=slow)], ids=str)
def test_what_is_asked_for_as_linux_goes_down_is_answered_once(
    machine: PseriesMachine, guest: Guest, contract: Contract, kind: Kind
) -> None:
    """C14, M40, P30: it goes, by the guest or by its reset, whichever is first, or the guest refuses; the next boot hears nothing of it."""
    device = plug(machine, kind)
    since = machine.timeline.mark()
    # Its last words and the request take some milliseconds to get through.
    guest.leave("echo going down >/dev/hvc2; usleep 20000; exec reboot -f")
    machine.await_records(lambda r: r.lane is Lane.SERVICE and r.text == "going down", 1, since, "the guest's last words")
    machine.qmp.execute("device_del", {"id": device.id})
    answered = machine.timeline.mark()
    reset = machine.await_records(lambda r: r.event == "RESET", 1, since, "RESET")[0]
    machine.await_ready(since)
    if reset.seq < answered:
        pytest.skip("the guest was quicker: what is asked of its next boot is the matter of the tests above")
    assert not device.waiting
    refused = events_since(machine, since, "DEVICE_UNPLUG_GUEST_ERROR", "MEM_UNPLUG_ERROR")
    if refused:
        # From migrate_to_reboot_cpu on, Linux puts no CPU offline (cpu_hotplug_disable: EBUSY); memory it still does.
        assert kind is Kind.CORE
        assert [event["data"]["device"] for event in refused] == [device.id]
        assert told(machine, since) == []
        assert device.configured
        assert device.unplug() == contract.removal(device)
    else:
        assert told(machine, since) == [device.id]
        assert not device.configured
        assert plug(machine, kind).configured


def of_the_boot(contract: Contract, device: Device) -> Expectation:
    """Return what is promised of a device that the guest has had since its boot: Linux gives up no such memory."""
    return contract.silence(device, cause="memory of the boot") if device.kind is Kind.DIMM else contract.removal(device)
