"""What holds for every kind of device that can go again."""

from __future__ import annotations

from collections.abc import Callable

from pytest_spapr import Contract, Guest, Kind, Outcome, PseriesMachine

from .inventory import events_since
from .kinds import PHB_SLOWLY, SILENCE, plug, silenced


@PHB_SLOWLY
def test_a_request_to_a_paused_machine_is_kept_for_it(machine: PseriesMachine, contract: Contract, kind: Kind) -> None:
    """C08, M04, P04, X04, X06: silence while the machine stands still, and the removal as soon as it runs; it is told exactly once.

    One DEVICE_DELETED names the device; those of its children name only a path below it and come before.
    """
    device = plug(machine, kind)
    with machine.paused():
        attempt = device.unplug()
        assert attempt == contract.silence(device, cause="machine paused")
        assert device.unplug() == contract.repeat(device)
    assert device.follow(attempt) == contract.after(device, what="resume")
    deleted = [event["data"] for event in events_since(machine, attempt.began, "DEVICE_DELETED")]
    assert [data["path"] for data in deleted if data.get("device") == device.id] == [device.qom_path]
    assert deleted[-1]["path"] == device.qom_path
    for child in deleted[:-1]:
        assert "device" not in child
        assert child["path"].startswith(f"{device.qom_path}/")


@PHB_SLOWLY
def test_a_silent_device_vanishes_at_reset(machine: PseriesMachine, contract: Contract, kind: Kind) -> None:
    """C33, M31, P22: failed twice, and then the reset removes what the guest kept. Nothing gives the device back."""
    device = plug(machine, kind)
    with silenced(machine, kind):
        attempt = device.unplug()
        assert attempt == contract.silence(device, cause=SILENCE[kind])
        assert device.unplug() == contract.repeat(device)
        since = machine.timeline.mark()
        machine.reset(wait=False)
    machine.await_ready(since)
    assert device.follow(attempt) == contract.after(device, what="reset")
    assert len(events_since(machine, since, "RESET")) == 1


@PHB_SLOWLY
def test_a_request_before_the_guest_boots_is_granted_by_its_boot(machine: PseriesMachine, contract: Contract, kind: Kind) -> None:
    """C33, C39, M40, P30: after the reset the firmware has the machine, which knows nothing of hot-unplug, until the guest calls CAS.

    QEMU 5.2 rejects a DIMM's: the reset has it forget what the guest can do.
    """
    device = plug(machine, kind)
    with machine.paused():
        since = machine.timeline.mark()
        machine.reset(wait=False)
        attempt = device.unplug()
        assert attempt == contract.before_cas(device)
    machine.await_ready(since)
    if attempt.outcome is Outcome.PENDING:
        assert device.follow(attempt) == contract.after(device, what="CAS")
    else:
        assert device.configured


@PHB_SLOWLY
def test_a_device_that_stays_survives_a_reset(machine: PseriesMachine, contract: Contract, kind: Kind) -> None:
    """C04, M04, P01: a reset removes only what is pending. Afterwards a DIMM is memory of the boot, which Linux does not give up."""
    device = plug(machine, kind)
    machine.reset()
    assert device.configured
    kept = kind is Kind.DIMM
    assert device.unplug() == (contract.silence(device, cause="memory of the boot") if kept else contract.removal(device))


def test_before_the_guest_runs_a_removal_asks_nobody(
    launch_machine: Callable[..., PseriesMachine], contract: Contract, kind: Kind
) -> None:
    """C41, M40, P30: at ``-S`` a device is removed at once, if at all, and the verdict says that this proves nothing about a guest."""
    machine = launch_machine(boot=False)
    device = plug(machine, kind)
    attempt = device.unplug()
    assert attempt == contract.before_boot(device)
    assert attempt != contract.removal(device)


def test_a_guest_that_keeps_its_device_can_give_up_the_others(machine: PseriesMachine, guest: Guest, contract: Contract) -> None:
    """X02: a refused core, a silent DIMM and a removed PCI device, and each event goes to the right one."""
    core, dimm, pci = (plug(machine, kind) for kind in (Kind.CORE, Kind.DIMM, Kind.PCI))
    since = machine.timeline.mark()
    with guest.memory.offline_refused(), guest.cpus.offline(0):
        attempt = core.unplug()
        assert attempt == contract.refusal(core, cause="last online CPU")
        assert dimm.unplug() == contract.silence(dimm, cause="first LMB refused")
        assert pci.unplug() == contract.removal(pci)
    told = [
        event["data"]["device"]
        for event in events_since(machine, since, "DEVICE_DELETED", "DEVICE_UNPLUG_GUEST_ERROR")
        if "device" in event["data"]
    ]
    assert told == ([core.id] if attempt.outcome is Outcome.REFUSED else []) + [pci.id]
