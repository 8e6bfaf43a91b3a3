"""What is asked of a machine without a guest: by the search, and in the same way by the tests of what it found."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from pytest_spapr.deadline import Deadline
from pytest_spapr.errors import QmpRefused
from pytest_spapr.explore.model import DELETED
from pytest_spapr.explore.steps import Command
from pytest_spapr.hotplug import drc
from pytest_spapr.hotplug.defects import row
from pytest_spapr.timeline import Lane, Record

if TYPE_CHECKING:
    from pytest_spapr.hotplug.pseries import PseriesMachine
    from pytest_spapr.qemu.qmp import Qmp

#: What has QEMU run what waits for RCU, as a step of a history.
DRAIN: Final = Command(*row.DRAIN)
#: What RCU has to do may make more work for it: it takes some rounds, most often one.
SETTLE_SECONDS: Final = 3.0


def devices(qmp: Qmp) -> frozenset[str]:
    """Return the ids of all devices that were plugged and have not gone."""
    children = qmp.execute("qom-list", {"path": "/machine/peripheral"})
    return frozenset(child["name"] for child in children if child["type"].startswith("child<"))


def attached(records: Iterable[Record]) -> tuple[int, ...]:
    """Return the connectors that these records say have got a device."""
    return tuple(sorted({found for record in records if (found := drc.traced(record, drc.ATTACH)) is not None}))


def about_unplug(record: Record) -> tuple[str, str] | None:
    """Return an event about an unplug, with its device; those without an id are of parts of devices."""
    if record.lane is not Lane.EVENT or record.data is None or record.event is None:
        return None
    if record.event != DELETED and "UNPLUG" not in record.event:
        return None
    device = record.data.get("data", {}).get("device")
    return (record.event, str(device)) if device is not None else None


def plugs(machine: PseriesMachine, since: int) -> int:
    """Return how many connectors have got a device since the cursor, by a command that was answered."""
    # What a command caused stands before the answer to the next one.
    machine.qmp.execute("query-status")
    return len(attached(machine.timeline.since(since)))


def told(machine: PseriesMachine) -> Counter[tuple[str, str]]:
    """Return how often QEMU has sent each event about an unplug, of each device."""
    return Counter(event for record in machine.timeline.since(0, Lane.EVENT) if (event := about_unplug(record)))


def settle(machine: PseriesMachine, count: int) -> None:
    """Have QEMU run what waits for RCU until the end of so many devices has been told, or for some time."""
    deadline = Deadline(SETTLE_SECONDS)
    while True:
        with suppress(QmpRefused):
            machine.qmp.execute(DRAIN.name, DRAIN.arguments)
        ends = sum(times for (name, _), times in told(machine).items() if name == DELETED)
        if ends >= count or deadline.expired:
            return
