"""A machine that runs and has nobody who could answer: what is so at once, after a while, after a reset."""

from __future__ import annotations

import pytest

from pytest_spapr import Contract, Kind, LaunchMachine, Outcome
from pytest_spapr.hotplug import drc

from .inventory import REFUSALS, await_deleted, events_since, told
from .kinds import plug
from .moments import await_prompt

#: Seconds: the time limit of an unplug, where a QEMU has one, and what a host may be late by.
_LIMIT, _SLACK = 15, 2


# Cores by themselves: of their removal a QEMU may die.
@pytest.mark.parametrize("kinds", [(Kind.CORE,), (Kind.DIMM, Kind.PCI, Kind.PHB)], ids=["core", "others"])
@pytest.mark.parametrize("seconds", [_LIMIT + _SLACK, pytest.param(60, marks=pytest.mark.spapr_slow)])
def test_a_prompt_of_the_firmware_keeps_what_it_is_asked_for(
    launch_machine: LaunchMachine, contract: Contract, seconds: int, kinds: tuple[Kind, ...]
) -> None:
    """C39, M40, P30, X04: SLOF without anything to boot. The reset grants it all, and then again nothing is heard of it."""
    machine = launch_machine(image=None, boot=False)
    devices = [plug(machine, kind) for kind in kinds]
    machine.boot()
    # The reset makes the firmware's own what came before it.
    since = machine.timeline.mark()
    machine.reset()
    await_prompt(machine, since)
    attempts = [(device, device.unplug()) for device in devices]
    for device, attempt in attempts:
        assert attempt == contract.before_cas(device)
    pending = [(device, attempt) for device, attempt in attempts if attempt.outcome is Outcome.PENDING]
    # Before 6.0 a DIMM waits for an operating system before it can be asked for.
    assert {device.kind for device, _ in pending} >= set(kinds) - {Kind.DIMM}
    kept = []
    for device, attempt in pending:
        later = device.outlast(attempt, seconds)
        # QEMU alone can end the waiting for a core, and only one with a time limit does so.
        limited = device.kind is Kind.CORE and "unplug-timer" in machine.build.features
        assert later.outcome is (Outcome.REVERTED if limited else Outcome.PENDING)
        assert (later.waiting, later.events) == (not limited, ())
        if not limited:
            kept.append((device, later))
    since = machine.timeline.mark()
    machine.reset()
    # A PCI device and a PHB end after a grace period of RCU, which a vCPU at the prompt may keep from ending: nothing interrupts it.
    with machine.paused():
        for device, _ in kept:
            await_deleted(machine, since, device.id)
    for device, attempt in kept:
        assert device.follow(attempt).outcome is Outcome.REMOVED
    await_prompt(machine, since)
    assert sorted(told(machine, since)) == sorted(device.id for device, _ in kept)
    assert events_since(machine, since, *REFUSALS) == []
    assert drc.waiting(machine.qmp, [index for device in devices for index in device.drcs]) is False
