"""The states of QEMU's connectors over time, as bars: what the model makes of the trace, between two things that happen to each."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from pytest_spapr.coverage.replay import WATCH, Replay
from pytest_spapr.hotplug.drc_model import State, Transition, class_of
from pytest_spapr.qemu.migration import STEP
from pytest_spapr.timeline import Lane, Record

_RUNS: Final = ("cont", "device_add", WATCH[0])
# More connectors than these are shown in groups that went through the same.
_ROWS: Final = 10


@dataclass(frozen=True, slots=True)
class Stay:
    """A connector in one state. :ivar state: None where the trace does not tell. :ivar begin: :ivar end: seconds. :ivar seq: its cause."""

    state: State | None
    begin: float
    end: float
    seq: int


@dataclass(frozen=True, slots=True)
class Bar:
    """What one connector went through, or the first of several that went through the same."""

    label: str
    index: int
    stays: tuple[Stay, ...]


def bars(records: Iterable[Record], features: frozenset[str]) -> list[Bar]:
    """Return the bars of the connectors that anything happened to after the machine first ran, by index.

    :param features: of the build: whether it hears refusals.
    """
    follower = _Follower(features)
    last = 0.0
    for record in records:
        follower.take(record)
        last = record.time
    found = []
    for index, moments in sorted(follower.moments.items()):
        if len(moments) == 1 and follower.there_from_the_start(index):
            continue
        ends = [*(time for _, time, _ in moments[1:]), last]
        stays = [
            Stay(state, time, end, seq) for (state, time, seq), end in zip(moments, ends, strict=True) if state is not State.EMPTY
        ]
        if stays:
            found.append(Bar(_label(index), index, tuple(stays)))
    return found if len(found) <= _ROWS else _grouped(found)


def last_states(records: Iterable[Record], features: frozenset[str]) -> dict[int, State | None]:
    """Return the state of each connector at the end of these records, by index; None where the trace does not tell."""
    follower = _Follower(features)
    for record in records:
        follower.take(record)
    return {index: moments[-1][0] for index, moments in follower.moments.items()}


def moves(records: Iterable[Record], features: frozenset[str]) -> dict[int, list[tuple[int, State | None]]]:
    """Return which connectors a record moved into which states, by the record's position."""
    follower = _Follower(features)
    for record in records:
        follower.take(record)
    found: dict[int, list[tuple[int, State | None]]] = {}
    for index, moments in follower.moments.items():
        for state, _, seq in moments:
            found.setdefault(seq, []).append((index, state))
    return found


def _label(index: int) -> str:
    return f"{class_of(index) or 'DRC'} {index:#x}"


def _grouped(found: list[Bar]) -> list[Bar]:
    groups: list[list[Bar]] = []
    for bar in found:
        last = groups[-1][-1] if groups else None
        if last is not None and last.index == bar.index - 1 and [s.state for s in last.stays] == [s.state for s in bar.stays]:
            groups[-1].append(bar)
        else:
            groups.append([bar])
    return [
        group[0] if len(group) == 1 else Bar(f"{len(group)}x {group[0].label}", group[0].index, group[0].stays)
        for group in groups
    ]


class _Follower(Replay):
    """Follows connectors also where resets are not traced: QEMU tells of those of the machine."""

    def __init__(self, features: frozenset[str]) -> None:
        super().__init__(features)
        self.moments: dict[int, list[tuple[State | None, float, int]]] = {}
        self._record: Record | None = None
        self._resets_traced = False
        self._first_run: int | None = None

    def there_from_the_start(self, index: int) -> bool:
        return self._first_run is None or self.moments[index][0][2] < self._first_run

    def take(self, record: Record) -> None:
        self._record = record
        if record.lane is Lane.STEP:
            # Nobody needs to know the states anew: they travel, and what the other QEMU attaches is what this one had.
            self._moving |= record.text == STEP
        elif record.event == "RESET" and not self._resets_traced:
            for index in list(self._states):
                if (drc_class := class_of(index)) is not None:
                    self._move(index, drc_class, Transition.RESET)
        elif record.lane is Lane.QMP and record.data is not None and record.data.get("execute") in _RUNS:
            self._resets_traced |= record.data["execute"] == WATCH[0]
            self._first_run = record.seq if self._first_run is None else self._first_run
            self._command(str(record.data["execute"]))
            self._moved |= self._moving
            self._watched, self._moving = True, False
        elif record.lane is Lane.DRC:
            if record.data is not None and record.data["event"] == "spapr_drc_unrealize":
                # Behind a PHB that goes.
                self._put(int(record.data["drc"]), State.EMPTY)
            super().take(record)

    def _put(self, index: int, state: State | None) -> None:
        super()._put(index, state)
        if self._record is None:
            return
        moments = self.moments.setdefault(index, [])
        here = (state, self._record.time, self._record.seq)
        # One record may move a connector twice.
        if moments and moments[-1][2] == self._record.seq:
            moments.pop()
        if not moments or moments[-1][0] is not state:
            moments.append(here)
