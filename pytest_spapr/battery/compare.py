"""Compares what two builds did in the same scenarios, by what each did every time.

A value counts as changed only where the two builds never did the same in any of their runs: what varies from run to run on one build
is no change.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Final

from pytest_spapr.battery.observation import Observation, Result
from pytest_spapr.hotplug.outcome import Outcome

#: The facts of a step that a change of another one brings with it, so that one line is enough.
_FOLLOWS: Final = {
    "cause": "outcome",
    "guest asked": "outcome",
    "waiting": "outcome",
    "QEMU's view": "outcome",
    "the guest's view": "outcome",
}
#: A time is another one if it is so many times longer, and at least by so many seconds: machines share their host with others.
_SLOWER: Final = 5.0
_SECONDS: Final = 3.0


class Verdict(Enum):
    """What can be said of one scenario on two builds."""

    SAME = "same"
    CHANGED = "changed"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Change:
    """One thing that changed.

    :ivar step: where. :ivar fact: what. :ivar old: :ivar new: in words. :ivar note: what that means, where it helps.
    """

    step: str
    fact: str
    old: str
    new: str
    note: str = ""

    def __str__(self) -> str:
        return f"{self.step}: {self.fact}: {self.old} -> {self.new}" + (f" ({self.note})" if self.note else "")


@dataclass(frozen=True, slots=True)
class Comparison:
    """One scenario on two builds. :ivar why: for UNKNOWN, what kept it from being compared, one line each."""

    scenario: str
    verdict: Verdict
    changes: tuple[Change, ...] = ()
    why: tuple[str, ...] = ()


def compare(scenario: str, old: Sequence[Result], new: Sequence[Result]) -> Comparison:
    """Compare the runs of one scenario on two builds."""
    sound = [_sound(old), _sound(new)]
    if not all(sound):
        why = [
            f"{side}: {line}"
            for side, runs, good in (("old", old, sound[0]), ("new", new, sound[1]))
            if not good
            for line in _why(runs)
        ]
        return Comparison(scenario, Verdict.UNKNOWN, why=tuple(why))
    changes = tuple(_changes(*sound))
    return Comparison(scenario, Verdict.CHANGED if changes else Verdict.SAME, changes)


def _sound(runs: Iterable[Result]) -> list[Result]:
    """Return the runs that say something: those that came to their end, and those that QEMU died in of no known defect."""
    return [one for one in runs if one.defect is None and (one.trouble is None or one.crashed)]


def _why(runs: Iterable[Result]) -> list[str]:
    """Return what kept each run from being sound, each reason once."""
    lines = (f"known defect {one.defect}: {one.trouble}" if one.defect else f"{one.trouble}" for one in runs)
    return list(dict.fromkeys(lines)) or ["it was not run"]


def _changes(old: Sequence[Result], new: Sequence[Result]) -> Iterable[Change]:
    for step in dict.fromkeys(one.step for result in (*old, *new) for one in result.observations):
        before, after = ([one for result in side if (one := result.find(step))] for side in (old, new))
        if before and after:
            found = list(_of_step(step, before, after))
            deaths = [one for one in found if one.fact == "outcome" and Outcome.CRASHED in (one.old, one.new)]
            yield from deaths or found
            if deaths:
                return
        elif all(one.crashed for one in (new if before else old)):
            # It died on the way to this step, and all later ones.
            yield _death(step, old, new)
            return
        else:
            yield Change(step, "step", *("reached" if side else "never reached" for side in (before, after)))
    if {one.crashed for one in old}.isdisjoint(one.crashed for one in new):
        yield _death("end", old, new)


def _death(step: str, old: Sequence[Result], new: Sequence[Result]) -> Change:
    return Change(
        step, "QEMU", *(f"dies: {side[0].trouble}" if all(one.crashed for one in side) else "lives" for side in (old, new))
    )


def _of_step(step: str, old: Sequence[Observation], new: Sequence[Observation]) -> Iterable[Change]:
    changed = {name for name in old[0].facts if not _values(old, name) & _values(new, name)}
    for fact in old[0].facts:
        if fact in changed and _FOLLOWS.get(fact) not in changed:
            yield _change(step, fact, _values(old, fact), _values(new, fact))
    times = [[one.seconds for one in side] for side in (old, new)]
    if "outcome" not in changed and (_slower(*times) or _slower(*reversed(times))):
        yield Change(step, "time", *(_seconds(side) for side in times))


def _values(side: Iterable[Observation], fact: str) -> set[object]:
    return {one.facts[fact] for one in side}


def _slower(quick: Sequence[float], slow: Sequence[float]) -> bool:
    return min(slow) > _SLOWER * max(quick) and min(slow) > max(quick) + _SECONDS


def _seconds(side: Sequence[float]) -> str:
    least, most = f"{min(side):.1f}", f"{max(side):.1f}"
    return f"{least} s" if least == most else f"{least} to {most} s"


def _change(step: str, fact: str, before: set[object], after: set[object]) -> Change:
    old, new = (" or ".join(sorted(map(fact_in_words, side))) for side in (before, after))
    return Change(step, fact, old, new, _gone(before, after) if fact == "events" else "")


def _gone(before: set[object], after: set[object]) -> str:
    """Return which events one of the builds does not send at all."""
    old, new = (
        {event.split(" x")[0] for events in side if isinstance(events, tuple) for event in events} for side in (before, after)
    )
    words = [f"{name} is no longer sent" for name in sorted(old - new)] + [f"{name} is new" for name in sorted(new - old)]
    return ", ".join(words)


def fact_in_words(value: object) -> str:
    """Return a fact's value for people."""
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if not isinstance(value, tuple):
        return str(value)
    parts = [f"[{', '.join(part)}]" if isinstance(part, tuple) else str(part) for part in value]
    return ", ".join(parts) or "nothing"
