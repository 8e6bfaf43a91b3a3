"""Why an attempt is not what was expected, in the few lines that a terminal shows: each says one thing, the first ones the most."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

from pytest_spapr.hotplug.attempt import Attempt
from pytest_spapr.hotplug.drc_model import class_of
from pytest_spapr.hotplug.expectation import Expectation
from pytest_spapr.hotplug.management import WAIT, Verdict
from pytest_spapr.printable import printable
from pytest_spapr.report.timeline.bars import last_states
from pytest_spapr.timeline import Lane, Record

#: What libvirt makes of it, in words.
_CONCLUSIONS: Final = {
    Verdict.REMOVED: "the device is gone",
    Verdict.REJECTED: "the device stays, and it may ask again at once",
    Verdict.TIMED_OUT: f"nothing for {WAIT:.0f} s: it gives up waiting, and the device may still go at any time",
    Verdict.UNKNOWN: "nothing: the domain ended with QEMU",
}
_NAME, _COLUMN = 14, 42
_WIDTH: Final = 150
# Evidence beyond this is on the page.
_MOST: Final = 3


@dataclass(frozen=True, slots=True)
class Scene:
    """What is known around an attempt. :ivar records: its machine's. :ivar features: the build's. :ivar where: files of the test."""

    records: Sequence[Record] = ()
    features: frozenset[str] = field(default_factory=frozenset)
    where: Sequence[str] = ()


_NOWHERE: Final = Scene()


def explain(attempt: Attempt, expected: Expectation | None = None, scene: Scene = _NOWHERE) -> list[str]:
    """Return the lines that tell a person what was promised, what was seen, and what is known of it.

    :param expected: what the attempt was compared with, if anything. No line has a character that a terminal could act upon.
    """
    lines = list(_against(attempt, expected) if expected is not None else _alone(attempt))
    if attempt.events or expected is None:
        lines.append(_row("heard", _events(attempt, scene.records)))
    lines.extend(_rows("evidence", _evidence(attempt)))
    lines.extend(_rows("connectors", _connectors(attempt, scene)))
    lines.append(_row("libvirt", f"would conclude: {_CONCLUSIONS[attempt.management]}"))
    if expected is not None:
        kept = (f"{one.name} {one.observed}" for one in expected.aspects(attempt) if one.kept and one.observed != "nothing")
        lines.append(_row("as promised", ", ".join(kept) or "nothing"))
        lines.append(_row("contract", expected.source))
    lines.extend(_rows("see", scene.where))
    return [_safe(line) for line in lines]


def _against(attempt: Attempt, expected: Expectation) -> Iterator[str]:
    subject = f"{attempt.kind} {attempt.device}"
    yield f"{subject}: not what the contract promises for {expected.situation!r} ({attempt.elapsed:.3f} s after device_del)"
    yield _row("", f"{'expected':<{_COLUMN}}observed")
    for aspect in expected.aspects(attempt):
        if not aspect.kept:
            yield from _beside(aspect.name, aspect.expected, aspect.observed)
    if expected.event_differences(attempt):
        yield from _beside("events", ", ".join(map(str, expected.events)) or "none", _counted(attempt))


def _alone(attempt: Attempt) -> Iterator[str]:
    yield str(attempt)


def _beside(name: str, expected: str, observed: str) -> Iterator[str]:
    """Yield one line where there is room for both, else two."""
    name = {"QEMU waits for the guest": "QEMU waits", "the guest's view": "guest's view"}.get(name, name)
    if len(expected) < _COLUMN:
        yield _row(name, f"{expected:<{_COLUMN}}{observed}")
    else:
        yield _row(name, expected)
        yield _row("", f"{'':<{_COLUMN}}{observed}")


def _counted(attempt: Attempt) -> str:
    names = list(attempt.event_names)
    counts = [f"{name} x{names.count(name)}" for name in dict.fromkeys(names)]
    in_order = list(dict.fromkeys(names)) == [name for at, name in enumerate(names) if at == 0 or names[at - 1] != name]
    return ", ".join(counts if in_order else names) or "none"


def _events(attempt: Attempt, records: Sequence[Record]) -> str:
    """Return the events in order, each with the seconds since ``device_del``."""
    part = records[attempt.began : attempt.ended]
    start = next((record.time for record in part if record.lane is Lane.STEP), 0.0)
    told = []
    for event in attempt.events:
        seen = next((record for record in part if record.lane is Lane.EVENT and record.data is event), None)
        told.append(event["event"] if seen is None else f"{seen.time - start:.3f} s {event['event']}")
    return ", ".join(told) or f"no event about {attempt.device}"


def _evidence(attempt: Attempt) -> list[str]:
    # The last ones are those that the verdict was given on.
    left = len(attempt.evidence) - _MOST
    return [*attempt.evidence[-_MOST:], *([f"and {left} more before"] if left > 0 else [])]


def _connectors(attempt: Attempt, scene: Scene) -> list[str]:
    """Return the last states of the device's connectors, those that are in the same one together."""
    states = last_states(scene.records[: attempt.ended], scene.features)
    together: dict[str, list[int]] = {}
    for index in attempt.drcs:
        if index in states:
            state = states[index]
            together.setdefault("unknown" if state is None else str(state), []).append(index)
    return [f"{class_of(found[0])} {_span(found)}: {state}" for state, found in together.items()]


def _span(indexes: Sequence[int]) -> str:
    one, last = f"{indexes[0]:#x}", f"{indexes[-1]:#x}"
    return one if len(indexes) == 1 else f"{one} to {last} ({len(indexes)} of them)"


def _rows(name: str, texts: Sequence[str]) -> Iterator[str]:
    for number, text in enumerate(texts):
        yield _row("" if number else name, text)


def _row(name: str, text: str) -> str:
    return f"{name:<{_NAME}} {text}".rstrip()


def _safe(line: str) -> str:
    shown = printable(line)
    # A link or a path that was cut would lead nowhere.
    return shown if len(shown) <= _WIDTH or shown.startswith("see") else f"{shown[: _WIDTH - 1]}…"
