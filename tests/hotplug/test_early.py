"""What is asked of a machine while its firmware runs, before any operating system listens."""

from __future__ import annotations

import pytest

from pytest_spapr import Contract, Deadline, Kind, Lane, Outcome, PseriesMachine, QemuBuild, Record

from .kinds import plug

pytestmark = pytest.mark.spapr(firmware="slof")


def reset_into_firmware(machine: PseriesMachine) -> int:
    """Reset the machine and return, when SLOF has begun, the timeline's cursor before the reset."""
    since = machine.timeline.mark()
    machine.reset(wait=False)

    def slof(record: Record) -> bool | None:
        return True if record.lane is Lane.CONSOLE and "SLOF" in record.text else None

    machine.timeline.wait(slof, since=since, deadline=Deadline(machine.budgets.boot), what="SLOF")
    return since


def test_a_request_while_the_firmware_runs_is_granted_by_the_boot(
    machine: PseriesMachine, contract: Contract, qemu_build: QemuBuild, kind: Kind
) -> None:
    """C39, M40, P30: SLOF knows nothing of hot-unplug; what is pending goes when Linux calls CAS, before it can have a say."""
    if kind is Kind.DIMM and "memory-unplug-before-cas" not in qemu_build.features:
        pytest.skip(f"{qemu_build.version_text} rejects it: see test_every_kind.py")
    device = plug(machine, kind)
    since = reset_into_firmware(machine)
    attempt = device.unplug()
    assert attempt == contract.removal(device)
    gone = machine.await_records(lambda r: r.event == "DEVICE_DELETED" and device.id in r.text, 1, since, "its event")[0]
    up = machine.await_records(lambda r: r.lane is Lane.SERVICE and r.text == "init: started", 1, since, "the guest's init")[0]
    assert gone.seq < up.seq


def test_what_comes_while_the_firmware_runs_goes_without_a_question(
    machine: PseriesMachine, contract: Contract, kind: Kind
) -> None:
    """C39, M40, P30: neither SLOF nor the operating system after it ever hears of it; where QEMU rejects it, it is there."""
    since = reset_into_firmware(machine)
    device = plug(machine, kind, wait=False)
    attempt = device.unplug()
    assert attempt == contract.before_boot(device)
    machine.await_ready(since)
    assert device.configured == (attempt.outcome is Outcome.REJECTED)


@pytest.mark.parametrize("kind", [Kind.CORE, Kind.PCI], ids=str)
def test_what_comes_while_the_firmware_runs_is_there_after_the_boot(
    machine: PseriesMachine, contract: Contract, kind: Kind
) -> None:
    """C39, P30: as if it had been there from the start; and it can go."""
    since = reset_into_firmware(machine)
    device = plug(machine, kind, wait=False)
    machine.await_ready(since)
    assert device.configured
    assert device.unplug() == contract.removal(device)
