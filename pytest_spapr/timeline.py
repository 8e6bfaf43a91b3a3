"""The timeline of a machine: everything observed about it, in order, on one clock.

Append-only and read by cursor, so that nothing is ever lost: whoever wants what follows a command takes ``mark()`` before sending
it, and waits ``since`` that mark. Sources are threads (QMP, consoles, stderr); readers are tests.

QEMU's streams come by different ways. A thread may read one of them long after another has brought what came later (50 ms were seen
on a busy host), so that whoever looks at the timeline first has every stream read that was given to :meth:`Timeline.follow`.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Any, TypeVar

from pytest_spapr.deadline import Clock, Deadline
from pytest_spapr.errors import DeadlineExpired, SpaprError

T = TypeVar("T")


class Lane(StrEnum):
    """Where a record comes from."""

    QMP = "qmp"  #: commands and replies
    EVENT = "event"  #: QAPI events
    DRC = "drc"  #: QEMU's ``spapr_drc_*`` trace events
    STDERR = "stderr"  #: anything else QEMU wrote
    CONSOLE = "console"  #: the guest's console, firmware included
    KERNEL = "kernel"  #: the guest's kernel log
    SERVICE = "service"  #: rtas_errd, drmgr and the guest's init
    SSH = "ssh"  #: guest commands
    SHELL = "shell"  #: what the plugin itself asks of the guest
    VFIO = "vfio"  #: what QEMU asks of the vfio-user servers behind its devices
    HOST = "host"  #: the kernel log of the host that a nested machine runs in, and what was done to that host
    LIBVIRT = "libvirt"  #: calls of a libvirt that has the machine for a domain, and its events
    STEP = "step"  #: what the test and the plugin did


@dataclass(frozen=True, slots=True)
class Record:
    """One observation.

    :ivar seq: position on the timeline, from 0. :ivar time: seconds since the timeline's start, negative for what was adopted.
    :ivar text: one line for people. :ivar data: the same for machines, where there is more to it (e.g. a whole QAPI event).
    """

    seq: int
    time: float
    lane: Lane
    text: str
    data: Mapping[str, Any] | None = None

    @property
    def event(self) -> str | None:
        """The name of the QAPI event, if this is one."""
        return str(self.data["event"]) if self.lane is Lane.EVENT and self.data is not None else None

    def __str__(self) -> str:
        return f"{self.time:10.4f}  {self.lane:<8} {self.text}"


@dataclass(frozen=True, slots=True)
class Margin:
    """How much of its budget one wait used, in seconds: shows which budgets are tight before they fail."""

    what: str
    used: float
    budget: float


class Timeline:
    """An append-only journal, safe for any number of writing and waiting threads.

    :param clock: a monotonic clock in seconds; tests pass their own.
    """

    def __init__(self, *, clock: Clock = time.monotonic) -> None:
        self._clock = clock
        self._start = clock()
        self._records: list[Record] = []
        self._changed = threading.Condition()
        self._end: SpaprError | None = None
        self._listeners: list[Callable[[Record], None]] = []
        self._streams: list[Callable[[], None]] = []
        self.margins: list[Margin] = []

    def record(self, lane: Lane, text: str, data: Mapping[str, Any] | None = None) -> Record:
        """Append one observation, stamped now, and wake every wait. Allowed after :meth:`end`: last words still count."""
        with self._changed:
            record = Record(len(self._records), self._clock() - self._start, lane, text, data)
            self._records.append(record)
            self._changed.notify_all()
            for listener in self._listeners:
                listener(record)
        return record

    def history(self, *lanes: Lane) -> list[Record]:
        """Return what was observed up to now, of these lanes or of all, at negative times: for a timeline that goes on from here."""
        now = self._clock() - self._start
        return [replace(record, time=record.time - now) for record in self.since(0, *lanes)]

    def adopt(self, records: Iterable[Record]) -> None:
        """Append the :meth:`history` of another timeline, which this one goes on from."""
        with self._changed:
            self._records.extend(replace(record, seq=seq) for seq, record in enumerate(records, start=len(self._records)))
            self._changed.notify_all()

    def listen(self, listener: Callable[[Record], None]) -> int:
        """Call ``listener`` for each record from now on, in the thread that made it. It must be quick and must not raise.

        Returns the cursor of the first that it is called for.
        """
        with self._changed:
            self._listeners.append(listener)
            return len(self._records)

    def follow(self, catch_up: Callable[[], None]) -> None:
        """Call ``catch_up`` before every look at the records: it records what a stream holds that nobody has read yet."""
        with self._changed:
            self._streams.append(catch_up)

    def step(self, text: str) -> Record:
        """Record what the test or the plugin does."""
        return self.record(Lane.STEP, text)

    @property
    def now(self) -> float:
        """The time that a record would get now."""
        return self._clock() - self._start

    def mark(self) -> int:
        """Return the cursor of what comes next: of all that is not written yet."""
        self._catch_up()
        with self._changed:
            return len(self._records)

    def since(self, cursor: int = 0, *lanes: Lane) -> list[Record]:
        """Return all records from ``cursor`` on, of these lanes or of all, with all that is written by now."""
        self._catch_up()
        with self._changed:
            return [record for record in self._records[cursor:] if not lanes or record.lane in lanes]

    def end(self, reason: SpaprError) -> None:
        """Say that no more is to come: every wait, now and later, raises ``reason`` once it has read what there is.

        The first reason stays.
        """
        with self._changed:
            self._end = self._end or reason
            self._changed.notify_all()

    @property
    def ended(self) -> SpaprError | None:
        """Why nothing more is to come, if so."""
        with self._changed:
            return self._end

    def wait(self, decide: Callable[[Record], T | None], *, since: int, deadline: Deadline, what: str) -> T:
        """Give each record from ``since`` on to ``decide`` until it returns something else than None; return that.

        :param what: what is waited for, in words, for the error and the margins.
        :raises DeadlineExpired: when the deadline runs out first.
        :raises SpaprError: the reason given to :meth:`end`, e.g. MachineDied, at once when nothing more is to come.
        """
        # pytest shows the caller's line, which is where the reader's question is.
        __tracebackhide__ = True
        start = self._clock()
        cursor = since
        while True:
            with self._changed:
                while cursor >= len(self._records):
                    if self._end is not None:
                        # Each raise would add its own lines to the traceback of the raises before it.
                        raise self._end.with_traceback(None)
                    if not self._changed.wait(deadline.remaining) and deadline.expired:
                        raise DeadlineExpired(what, deadline.seconds)
                fresh = self._records[cursor:]
                # What is there is looked at in any case, but a source that never stops writing does not prolong the wait.
                last_look = deadline.expired and self._end is None
            for record in fresh:
                cursor = record.seq + 1
                decision = decide(record)
                if decision is not None:
                    self.margins.append(Margin(what, self._clock() - start, deadline.seconds))
                    return decision
            if last_look:
                raise DeadlineExpired(what, deadline.seconds)

    def _catch_up(self) -> None:
        with self._changed:
            streams = list(self._streams)
        # Without the lock: who reads a stream records with it.
        for catch_up in streams:
            catch_up()

    def write(self, jsonl: Path, text: Path) -> None:
        """Write the whole timeline as JSON lines and as readable text."""
        records = self.since()
        with jsonl.open("w", encoding="utf-8") as stream:
            for record in records:
                entry: dict[str, Any] = {
                    "seq": record.seq,
                    "time": round(record.time, 6),
                    "lane": record.lane,
                    "text": record.text,
                }
                if record.data is not None:
                    entry["data"] = record.data
                stream.write(json.dumps(entry, default=str) + "\n")
        # QMP's JSON may hold half a surrogate pair, which UTF-8 has no bytes for.
        text.write_text("".join(f"{record}\n" for record in records), encoding="utf-8", errors="backslashreplace")


class Branch(Timeline):
    """The timeline of a QEMU that is to take over a machine. What it records stands on the machine's own too, at once.

    Its end is its own, until :meth:`merge`: then it is the machine's.

    :param trunk: the machine's timeline.
    """

    def __init__(self, trunk: Timeline) -> None:
        super().__init__()
        self._trunk = trunk
        self._merged = False

    def record(self, lane: Lane, text: str, data: Mapping[str, Any] | None = None) -> Record:
        super().record(lane, text, data)
        return self._trunk.record(lane, text, data)

    def follow(self, catch_up: Callable[[], None]) -> None:
        super().follow(catch_up)
        self._trunk.follow(catch_up)

    def end(self, reason: SpaprError) -> None:
        super().end(reason)
        with self._changed:
            merged = self._merged
        if merged:
            self._trunk.end(reason)

    def merge(self) -> None:
        """Let the end of this one, also one that has come, be the end of the machine's."""
        with self._changed:
            self._merged = True
            reason = self._end
        if reason is not None:
            self._trunk.end(reason)
