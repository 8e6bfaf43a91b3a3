"""What QEMU's ``spapr_drc_*`` trace events say about the connectors of a device (hw/ppc/spapr_drc.c, hw/ppc/trace-events)."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import TYPE_CHECKING, Final

from pytest_spapr.deadline import Deadline
from pytest_spapr.errors import QmpRefused
from pytest_spapr.hotplug.drc_model import PENDING, State
from pytest_spapr.qemu.vmstate import device_state, section, subsection
from pytest_spapr.timeline import Lane, Record, Timeline

if TYPE_CHECKING:
    from pytest_spapr.qemu.qmp import Qmp

#: A device was put behind the connector.
ATTACH: Final = "spapr_drc_attach"
#: An unplug waits for the guest. Without this line after ``device_del`` the connector was in its empty state and is released at once.
AWAITING: Final = "spapr_drc_awaiting_quiesce"

_STATES: Final = {
    "spapr_drc_set_isolation_state": {0: "isolate", 1: "unisolate"},
    "spapr_drc_set_allocation_state": {0: "unusable", 1: "usable", 2: "exchange", 3: "recover"},
}

#: The DRC indexes of core 0 and LMB 0: types 1 and 8, id 0 (hw/ppc/spapr_drc.h).
CORE_TYPE: Final = 0x1 << 28
LMB_TYPE: Final = 0x8 << 28
_ID_BITS: Final = 28

# vmstate_spapr_drc of hw/ppc/spapr_drc.c: its state, and the flag if it is set. The instance is the index. A connector whose device is
# in the guest's hands and not to be unplugged, and one without a device, has no section at all; 5.2 to 11.1.
_WAITS: Final = subsection("spapr_drc/unplug_requested", 1, rb"(?P<flag>.)")
_CONNECTOR: Final = section("spapr_drc", 1, rb"(?P<state>.{4})(?:" + _WAITS + rb")?")
# SpaprDrcState of hw/ppc/spapr_drc.h.
_SAVED_STATES: Final = {
    1: State.UNUSABLE,
    2: State.AVAILABLE,
    3: State.UNISOLATED,
    4: State.CONFIGURED,
    6: State.POWER_ON,
    7: State.UNISOLATED,
    8: State.CONFIGURED,
}


def traced(record: Record, event: str) -> int | None:
    """Return the DRC index if this record is that trace event."""
    if record.lane is Lane.DRC and record.data is not None and record.data["event"] == event:
        return int(record.data["drc"])
    return None


def traced_state(record: Record, index: int) -> str | None:
    """Return what this record says that happened to the connector, in QEMU's words without their prefix; None for anything else."""
    if record.lane is not Lane.DRC or record.data is None or record.data["drc"] != index:
        return None
    event, state = record.data["event"], record.data.get("state")
    name = str(event).removeprefix("spapr_drc_")
    return name if state is None else f"{name} {_STATES.get(event, {}).get(state, state)}"


def attached(timeline: Timeline, since: int, count: int, deadline: Deadline) -> tuple[int, ...]:
    """Return the indexes of the ``count`` connectors that were attached since the cursor, lowest first.

    QEMU writes the trace before it answers ``device_add``, but to another pipe: hence a wait, of microseconds.
    """
    found: set[int] = set()

    def collect(record: Record) -> bool | None:
        if (index := traced(record, ATTACH)) is not None:
            found.add(index)
        return True if len(found) == count else None

    timeline.wait(collect, since=since, deadline=deadline, what=f"{count} spapr_drc_attach trace events")
    return tuple(sorted(found))


def awaiting(timeline: Timeline, since: int, drcs: Collection[int]) -> bool:
    """Return whether QEMU has begun, since the cursor, to wait for the guest to give back one of these connectors."""
    return any(traced(record, AWAITING) in drcs for record in timeline.since(since, Lane.DRC))


def connector_id(index: int) -> int:
    """Return a DRC index without its type: a core's first hardware thread, an LMB's number, a PCI slot's bus and devfn."""
    return index & ((1 << _ID_BITS) - 1)


def waiting(qmp: Qmp, drcs: Collection[int]) -> bool | None:
    """Return whether QEMU waits now for the guest to give back one of these connectors (``unplug_requested``); None if it cannot say.

    It is in no QOM property. Costs 0.02 s, see ``device_state``.

    :raises MachineDied: QEMU ended.
    """
    try:
        state = device_state(qmp)
    except QmpRefused:
        return None
    return None if state is None else not unplug_requested(state).isdisjoint(drcs)


def unplug_requested(state: bytes) -> frozenset[int]:
    """Return the indexes of the connectors that wait for the guest, from the state of QEMU's devices."""
    return frozenset(_index(found) for found in _CONNECTOR.finditer(state) if _flagged(found))


def connector_states(state: bytes) -> dict[int, State]:
    """Return the state of each connector that has one of its own, from the state of QEMU's devices.

    That is every connector with a device, but for those whose device is in the guest's hands and not to be unplugged: configured.
    """
    return {_index(found): _state(found) for found in _CONNECTOR.finditer(state)}


def _index(found: re.Match[bytes]) -> int:
    return int.from_bytes(found["instance"], "big")


def _state(found: re.Match[bytes]) -> State:
    saved = _SAVED_STATES[int.from_bytes(found["state"], "big")]
    return PENDING[saved] if _flagged(found) else saved


def _flagged(found: re.Match[bytes]) -> bool:
    return found["flag"] not in (None, b"\0")
