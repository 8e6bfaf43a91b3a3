"""What a machine's trace says that its connectors went through.

All that happens to a connector is traced, except two things: its state after QEMU's start, which is ready for what was there from the
start, and what a refusal for one LMB does to the others of its DIMM. What the model does not allow is counted too, and leaves the
connector's state unknown: then nothing is counted for it until the trace says what it is.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final, TypeAlias

from pytest_spapr.hotplug.drc_model import NOT_PENDING, DrcClass, State, Transition, after, class_of, is_refusal
from pytest_spapr.qemu.migration import STEP
from pytest_spapr.timeline import Lane, Record

#: How often what happened in which state, by class, state and transition. Plain, so that it travels as JSON.
Driven: TypeAlias = dict[str, dict[str, dict[str, int]]]

#: The QMP command from which on resets are traced; QEMU is told not to before, see ``qemu.argv``.
WATCH: Final = ("trace-event-set-state", {"name": "spapr_drc_reset", "enable": True})

_TRANSITIONS: Final = {
    ("spapr_drc_set_isolation_state", 0): Transition.ISOLATE,
    ("spapr_drc_set_isolation_state", 1): Transition.UNISOLATE,
    ("spapr_drc_set_allocation_state", 0): Transition.SET_UNUSABLE,
    ("spapr_drc_set_allocation_state", 1): Transition.SET_USABLE,
    ("spapr_drc_set_configured", None): Transition.CONFIGURE,
    ("spapr_drc_reset", None): Transition.RESET,
}


def driven(records: Iterable[Record], features: frozenset[str]) -> Driven:
    """Return what the records of one machine's timeline say that its connectors went through, since resets are traced.

    :param features: of the build: whether it hears refusals. One with a time limit for unplugs gives nothing, for the limit's end is
        not traced.
    """
    if "unplug-timer" in features:
        return {}
    replay = Replay(features)
    for record in records:
        replay.take(record)
    return replay.driven


class Replay:
    """Follows every connector through one machine's records, and counts what moves it."""

    def __init__(self, features: frozenset[str]) -> None:
        self.driven: Driven = {}
        self._features = features
        self._watched = False
        self._moving = self._moved = False
        # None: unknown. One that is not here is empty.
        self._states: dict[int, State | None] = {}
        # Each LMB's DIMM, which is the LMBs that were attached in one go, in order.
        self._dimms: dict[int, list[int]] = {}
        self._attaching: list[int] = []

    def take(self, record: Record) -> None:
        """Follow what one more record says."""
        if record.lane is Lane.STEP and record.text == STEP:
            # What the other QEMU attaches is what this one had, and the states travel. That one has the machine when it is watched:
            # after a move that fails nothing counts.
            if self._moving:
                self._states = dict.fromkeys(self._states)
            self._moving = self._watched
        elif record.data is None:
            return
        elif record.lane is Lane.QMP and "execute" in record.data:
            self._command(str(record.data["execute"]))
        elif record.lane is Lane.DRC and not self._moving:
            index = int(record.data["drc"])
            if (drc_class := class_of(index)) is not None:
                self._trace(index, drc_class, record.data)

    def _command(self, command: str) -> None:
        if command == WATCH[0]:
            self._moved |= self._moving
            self._watched, self._moving = True, False
        elif command == "device_add":
            self._attaching = []
        elif command == "migrate-incoming" and self._watched and not self._moving:
            # A template's guest was at rest. Of any other source nobody knows.
            self._states = dict.fromkeys(self._states)

    def _trace(self, index: int, drc_class: DrcClass, data: Mapping[str, Any]) -> None:
        state = self._states.get(index, State.EMPTY)
        event = str(data["event"]).removeprefix("spapr_drc_")
        match event:
            case "attach":
                # There from the start: QEMU's first reset makes it ready, also before the first instruction. Else it was empty.
                self._put(index, State.EMPTY if self._watched else State.CONFIGURED)
                self._move(index, drc_class, Transition.ATTACH)
                self._join_dimm(index, drc_class)
            case "unplug_request":
                if state is not None and not (drc_class is DrcClass.LMB and self._moved):
                    # QEMU never asks for what is pending: then it is none any more, and nobody was told.
                    self._put(index, NOT_PENDING.get(state, state))
                self._move(index, drc_class, Transition.UNPLUG)
            # What 5.2 traces for a request, and again when it is fulfilled.
            case "detach" if state is not State.EMPTY and state not in NOT_PENDING:
                self._move(index, drc_class, Transition.UNPLUG)
            case "awaiting_quiesce" if state not in NOT_PENDING:
                self._put(index, None)
            case "set_allocation_state_finalizing":
                self._put(index, State.EMPTY)
            # 5.2 traces it for logical ones too, when the guest isolates them.
            case "set_isolation_state_finalizing" if drc_class is DrcClass.PCI:
                self._put(index, State.EMPTY)
            case "unrealize":
                self._states.pop(index, None)
            case _:
                if transition := _TRANSITIONS.get((str(data["event"]), data.get("state"))):
                    self._move(index, drc_class, transition)

    def _move(self, index: int, drc_class: DrcClass, transition: Transition) -> None:
        state = self._states.get(index, State.EMPTY)
        # Of the resets of what has no device not all are traced; and what one unknown is now depends on whether it was pending.
        if not self._watched or state is None or (transition is Transition.RESET and state is State.EMPTY):
            return
        # Plain strings: xdist carries no others.
        counts = self.driven.setdefault(str(drc_class), {}).setdefault(str(state), {})
        counts[str(transition)] = counts.get(transition, 0) + 1
        becomes = after(drc_class, state, transition, self._features)
        self._put(index, becomes)
        if becomes is not None and is_refusal(state, becomes):
            # Of one LMB: of its DIMM's others too.
            for other in self._dimms.get(index, ()):
                found = self._states.get(other)
                if found is not None:
                    self._put(other, NOT_PENDING.get(found, found))

    def _put(self, index: int, state: State | None) -> None:
        self._states[index] = state

    def _join_dimm(self, index: int, drc_class: DrcClass) -> None:
        if drc_class is DrcClass.LMB:
            if not self._attaching or self._attaching[-1] != index - 1:
                self._attaching = []
            self._attaching.append(index)
            self._dimms[index] = self._attaching
