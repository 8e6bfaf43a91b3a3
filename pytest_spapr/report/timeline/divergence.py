"""Where two runs part: not at a time, but at the first thing that QEMU or the guest does otherwise.

Each track of what matters is compared by itself, for records of two tracks come by different ways and may change places: what the test
did, QMP commands (without queries, which are repeated until something happens) with their answers, the events of each device, the
states of each connector, and when drmgr begins and how it ends. What is compared is what a record says without its numbers of the
moment: times, process and message ids, addresses. The records that are the same are put side by side; the first one without its like is the
first divergence. (Its time would not tell: one run may be slower.) The guest's kernel log and rtas_errd's words differ between kernels
and versions, and are told without counting.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Any, Final, TypeAlias

from pytest_spapr.guest.services import DRMGR_BEGAN, DRMGR_ENDED
from pytest_spapr.report.timeline.bars import moves
from pytest_spapr.report.timeline.run import Run
from pytest_spapr.timeline import Lane, Record

# Their number and place depend on the host's pace, or on what else the guest does.
_IDLE_EVENTS: Final = frozenset({"NIC_RX_FILTER_CHANGED", "RTC_CHANGE", "MIGRATION", "MIGRATION_PASS", "STOP", "RESUME"})
_QUERIES: Final = re.compile(r"query-|qom-get|qom-list|human-monitor-command|trace-event|xen-save|getfd|add-fd|remove-fd|closefd")
_SECONDS: Final = re.compile(r"\b\d+\.\d+ s\b")
_VOLATILE: Final = re.compile(r"0x[0-9a-f]+|\b[0-9a-f]{8,}\b|\d+(?:\.\d+)?|/tmp/\S+", re.IGNORECASE)
# The default CPU model is the build's, as 5.2's POWER8 is, and no behaviour.
_MODEL: Final = re.compile(r"power\d+_v\d+\.\d+-spapr-cpu-core")
_CONNECTOR: Final = "DRC "
# The end of the comparison in detail: aligning more would cost seconds.
_MOST: Final = 3000


@dataclass(frozen=True, slots=True)
class Difference:
    """The first difference of a track.

    :ivar a: :ivar b: the records' positions, None where that run has nothing more there. :ivar words: what each says.
    :ivar counts: whether it makes a divergence.
    """

    where: str
    a: int | None
    b: int | None
    words: tuple[str, str]
    counts: bool = True


@dataclass(frozen=True, slots=True)
class Pair:
    """What stands side by side. :ivar same: whether both say the same."""

    a: int | None
    b: int | None
    same: bool


@dataclass(frozen=True, slots=True)
class Divergence:
    """How two runs differ. :ivar first: None where they do not. :ivar by_track: the first difference of each track, those that count
    first and in order."""

    first: Difference | None
    by_track: tuple[Difference, ...]
    rows: tuple[Pair, ...]


@dataclass(frozen=True, slots=True)
class _Said:
    """A record as it is compared. One that moves connectors is compared as that too.

    :ivar track: what it is compared within. :ivar words: the same for people.
    """

    seq: int
    track: str
    key: str
    words: str
    counts: bool = True


_Row: TypeAlias = tuple[_Said | None, _Said | None, bool]


def diverge(a: Run, b: Run) -> Divergence:
    """Compare two runs from where their tests begin. Costs a second for a thousand records that count."""
    one, other = (list(_said(run)) for run in (a, b))
    rows = list(_aligned(*([said for said in side if said.counts][:_MOST] for side in (one, other))))
    known = list(_aligned(*([said for said in side if not said.counts][:_MOST] for side in (one, other))))
    found = [*_first_of_each(rows), *_first_of_each(known)]
    pairs = (Pair(None if left is None else left.seq, None if right is None else right.seq, same) for left, right, same in rows)
    return Divergence(found[0] if found and found[0].counts else None, tuple(found), tuple(pairs))


def _first_of_each(rows: Iterable[_Row]) -> Iterator[Difference]:
    """Yield the first row of each track that is not the same on both sides."""
    seen: set[str] = set()
    last: list[dict[str, str]] = [{}, {}]
    for left, right, same in rows:
        said = left or right
        if said is None:
            continue
        if not same and said.track not in seen:
            seen.add(said.track)
            words = [_words(one, said.track, before) for one, before in zip((left, right), last, strict=True)]
            seqs = [None if one is None else one.seq for one in (left, right)]
            yield Difference(said.track, seqs[0], seqs[1], (words[0], words[1]), said.counts)
        for one, before in zip((left, right), last, strict=True):
            if one is not None:
                before[one.track] = one.words


def _words(said: _Said | None, track: str, before: Mapping[str, str]) -> str:
    if said is not None:
        return said.words
    return f"stays {before[track]}" if track.startswith(_CONNECTOR) and track in before else "nothing more"


def _aligned(a: Sequence[_Said], b: Sequence[_Said]) -> Iterator[_Row]:
    """Yield what stands side by side, in the order of ``a``: each record beside the one of its track that says the same.

    What only ``b`` has follows all that it follows there.
    """
    partners: dict[_Said, tuple[_Said, bool]] = {}
    for track in dict.fromkeys(one.track for one in a):
        partners.update(_partners(*([one for one in side if one.track == track] for side in (a, b))))
    beside = {partner: number for number, one in enumerate(a) if one in partners for partner in partners[one][:1]}
    alone: dict[int, list[_Said]] = {}
    furthest = -1
    for one in b:
        if one in beside:
            furthest = max(furthest, beside[one])
        else:
            alone.setdefault(furthest, []).append(one)
    yield from ((None, follower, False) for follower in alone.get(-1, ()))
    for number, one in enumerate(a):
        partner, same = partners.get(one, (None, False))
        yield one, partner, same
        yield from ((None, follower, False) for follower in alone.get(number, ()))


def _partners(a: Sequence[_Said], b: Sequence[_Said]) -> Iterator[tuple[_Said, tuple[_Said, bool]]]:
    one, other = ([said.key for said in side] for side in (a, b))
    for tag, a1, a2, b1, b2 in SequenceMatcher(a=one, b=other, autojunk=False).get_opcodes():
        # What differs in the same place stands side by side too.
        yield from ((left, (right, tag == "equal")) for left, right in zip(a[a1:a2], b[b1:b2], strict=False))


def _said(run: Run) -> Iterator[_Said]:
    commands: dict[object, str] = {}
    moved = moves(run.records, run.features)
    for record in run.records[run.begin :]:
        for index, state in moved.get(record.seq, ()):
            # The state, not the trace: from version to version the same has other words.
            name = "unknown" if state is None else str(state)
            yield _Said(record.seq, f"{_CONNECTOR}{index:#x}", name, name)
        if (word := _WORDS.get(record.lane)) is not None:
            yield from word(record, commands)


def _step(record: Record, _: dict[object, str]) -> Iterator[_Said]:
    if not record.text.startswith("machine for "):
        yield _Said(record.seq, "test steps", _SECONDS.sub("some s", record.text), record.text)


def _qmp(record: Record, commands: dict[object, str]) -> Iterator[_Said]:
    data = record.data or {}
    if "execute" in data:
        command = commands[data.get("id")] = str(data["execute"])
        if not _QUERIES.match(command):
            yield _Said(record.seq, "QMP commands", f"-> {command} {_arguments(data.get('arguments'))}", record.text)
    elif "error" in data or "return" in data:
        command = commands.pop(data.get("id"), "")
        if command and not _QUERIES.match(command):
            answer = data.get("error", {}).get("desc") if "error" in data else "done"
            yield _Said(record.seq, "QMP commands", f"<- {command}: {_VOLATILE.sub('#', str(answer))}", record.text)


def _arguments(arguments: object) -> str:
    text = _MODEL.sub("spapr-cpu-core", json.dumps(arguments, sort_keys=True, default=str))
    # Only where there is a path are numbers of the moment.
    return _VOLATILE.sub("#", text) if "/" in text else text


def _event(record: Record, _: dict[object, str]) -> Iterator[_Said]:
    if (name := record.event) is None or record.data is None or name in _IDLE_EVENTS:
        return
    about: Mapping[str, Any] = record.data.get("data") or {}
    told = json.dumps({key: value for key, value in about.items() if key != "timestamp"}, sort_keys=True, default=str)
    # Of one device its own order; of two, either may come first.
    yield _Said(
        record.seq, f"events of {about.get('device') or about.get('path') or 'the machine'}", f"{name} {told}", record.text
    )


def _service(record: Record, _: dict[object, str]) -> Iterator[_Said]:
    if DRMGR_BEGAN.match(record.text) or DRMGR_ENDED.match(record.text):
        yield _Said(record.seq, "drmgr", record.text, record.text)
    else:
        # In more or fewer words from version to version.
        track = "drmgr's words" if record.text.startswith("drmgr: ") else "rtas_errd"
        yield _Said(record.seq, track, _VOLATILE.sub("#", record.text), record.text, counts=False)


def _kernel(record: Record, _: dict[object, str]) -> Iterator[_Said]:
    yield _Said(record.seq, "guest kernel", _VOLATILE.sub("#", record.text), record.text, counts=False)


_WORDS: Final[Mapping[Lane, Callable[[Record, dict[object, str]], Iterable[_Said]]]] = {
    Lane.STEP: _step,
    Lane.QMP: _qmp,
    Lane.EVENT: _event,
    Lane.SERVICE: _service,
    Lane.KERNEL: _kernel,
}
