"""Moments of a boot at which a machine is caught and stands still, for a test to ask it something there."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from pytest_spapr import Attempt, Deadline, Lane, PseriesMachine, Record
from pytest_spapr.hotplug.device import Device
from pytest_spapr.hotplug.evidence import Clue

#: The name of a moment: Linux has called CAS and is not up yet; its init has begun and none of its services is there.
CAS, INIT = "CAS", "init"


def await_record(machine: PseriesMachine, since: int, what: str, is_it: Callable[[Record], bool]) -> Record:
    """Return the first record after the cursor that is it, within the budget of a boot."""

    def decide(record: Record) -> Record | None:
        return record if is_it(record) else None

    return machine.timeline.wait(decide, since=since, deadline=Deadline(machine.budgets.boot), what=what)


def unplug_once_begun(device: Device, seconds: float) -> Attempt:
    """Ask for a device's removal and return the attempt so many seconds after the guest has begun with it, or at its end before.

    The seconds of ``unplug`` itself count from the command on, and a guest may be slow to hear of it.
    """
    machine = device.machine
    with machine.paused():
        asked = device.unplug()
    deadline = Deadline(machine.budgets.unplug)

    def decide(record: Record) -> Clue | None:
        return device.unplug_clue(record)

    machine.timeline.wait(decide, since=asked.began, deadline=deadline, what=f"the guest to begin with {device.id}")
    return device.follow(asked, seconds=seconds)


def reset_into_firmware(machine: PseriesMachine) -> int:
    """Reset the machine and return, when SLOF has begun, the timeline's cursor before the reset."""
    since = machine.timeline.mark()
    machine.reset(wait=False)
    await_record(machine, since, "SLOF", lambda record: record.lane is Lane.CONSOLE and "SLOF" in record.text)
    return since


def await_prompt(machine: PseriesMachine, since: int) -> None:
    """Wait, after the cursor, until SLOF has found nothing to boot and says its last line before the prompt."""
    await_record(machine, since, "SLOF's prompt", lambda record: record.lane is Lane.CONSOLE and record.text.strip() == "Ready!")


@contextmanager
def caught(machine: PseriesMachine, moment: str) -> Iterator[None]:
    """Reset the machine and have it stand still at a moment of the boot that follows; after the block the guest comes up.

    QEMU's trace tells of CAS, half a second or more (TCG) before Linux asks for the interrupt of hotplug events.
    """
    if moment == CAS:
        machine.qmp.execute("trace-event-set-state", {"name": "spapr_cas_pvr", "enable": True})
    since = machine.timeline.mark()
    machine.reset(wait=False)
    if moment == CAS:
        await_record(machine, since, "CAS", lambda record: record.lane is Lane.STDERR and "spapr_cas_pvr" in record.text)
    else:
        await_record(machine, since, "the guest's init", lambda record: record.text == "init: started")
    with machine.paused():
        said = [record.text for record in machine.timeline.since(since, Lane.SERVICE)]
        assert "init: modules loaded" not in said
        assert said == [] or moment == INIT
        yield
    machine.await_ready(since)
