"""QEMU's inventory, to prove that a refused command changed nothing, and the events since a moment."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

from pytest_spapr import PseriesMachine, Record

#: The events of an unplug that the guest refused.
REFUSALS: Final = ("DEVICE_UNPLUG_GUEST_ERROR", "MEM_UNPLUG_ERROR")


def inventory(machine: PseriesMachine) -> dict[str, Any]:
    """Return QEMU's view of everything that can be plugged; asking does not need the guest."""
    return {
        "cores": machine.cores.slots(),
        "memory": machine.qmp.execute("query-memory-devices"),
        "memory size": machine.qmp.execute("query-memory-size-summary"),
        "backends": sorted(child["name"] for child in machine.qmp.execute("qom-list", {"path": "/objects"})),
        "devices": sorted(child["name"] for child in machine.qmp.execute("qom-list", {"path": "/machine/peripheral"})),
        "pci": machine.qmp.execute("query-pci"),
    }


@contextmanager
def nothing_changes(machine: PseriesMachine, *, but_events: bool = False) -> Iterator[None]:
    """Prove that what happens inside leaves QEMU's inventory as it was and causes no unplug event.

    :param but_events: unplugs are what happens, but nothing is left of them.
    """
    before, since = inventory(machine), machine.timeline.mark()
    yield
    assert inventory(machine) == before
    assert but_events or not events_since(machine, since, "DEVICE_DELETED", *REFUSALS)


def events_since(machine: PseriesMachine, cursor: int, *names: str) -> list[dict[str, Any]]:
    """Return the QAPI events of these names since the cursor, in order."""
    records = machine.timeline.since(cursor)
    return [dict(record.data) for record in records if record.data and record.data.get("event") in names]


def await_deleted(machine: PseriesMachine, cursor: int, device: str) -> Record:
    """Return the DEVICE_DELETED that names this device, the first after the cursor; a child's has its id in its path only."""

    def names_it(record: Record) -> bool:
        return bool(record.event == "DEVICE_DELETED" and record.data and record.data["data"].get("device") == device)

    return machine.await_records(names_it, 1, cursor, f"the end of {device}")[0]


def told(machine: PseriesMachine, cursor: int) -> list[str]:
    """Return the ids that DEVICE_DELETED has named since the cursor, in its order; a child's event names none."""
    return [event["data"]["device"] for event in events_since(machine, cursor, "DEVICE_DELETED") if "device" in event["data"]]
