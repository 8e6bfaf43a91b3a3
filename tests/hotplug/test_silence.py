"""A machine that runs and has nobody who could answer: what is so at once, after a while, after a reset."""

from __future__ import annotations

import pytest

from pytest_spapr import Contract, Kind, LaunchMachine, Outcome

from .kinds import plug


@pytest.mark.parametrize("seconds", [1, pytest.param(60, marks=pytest.mark.spapr_slow)])
def test_a_prompt_of_the_firmware_keeps_what_it_is_asked_for(
    launch_machine: LaunchMachine, contract: Contract, seconds: int
) -> None:
    """C39, M40, P30, X04: SLOF without anything to boot. The reset grants it all, and then again nothing is heard of it."""
    machine = launch_machine(image=None)
    devices = [plug(machine, kind) for kind in (Kind.CORE, Kind.DIMM, Kind.PCI, Kind.PHB)]
    # The reset makes the firmware's own what came before it.
    machine.reset(wait=False)
    attempts = [device.unplug() for device in devices]
    for device, attempt in zip(devices, attempts, strict=True):
        assert attempt == contract.before_cas(device)
    for device, attempt in zip(devices, attempts, strict=True):
        later = device.outlast(attempt, seconds)
        # QEMU alone can end the waiting for a core, and only one with a time limit does so.
        ended = device.kind is Kind.CORE and "unplug-timer" in machine.build.features and seconds > 15
        assert later.outcome is (Outcome.REVERTED if ended else attempt.outcome)
    since = machine.timeline.mark()
    machine.reset(wait=False)
    for device, attempt in zip(devices, attempts, strict=True):
        if attempt.outcome is Outcome.PENDING:
            assert device.follow(attempt).outcome is Outcome.REMOVED
    machine.await_records(lambda record: record.event == "RESET", 1, since, "RESET")
