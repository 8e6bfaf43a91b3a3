"""What a test says of a commit: an answer for each run of it, and what the answers come to.

A commit is bad where the test fails, good where it passes, and nothing can be told where it does neither: it is skipped, fails as expected
of a known defect, or could not be set up. One that does not say the same twice is asked more often, and called flaky.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from pytest_spapr.avocado.verdict import Tally, judge

#: A fault that shows now and then may be missed in a commit that has it with this probability, once enough runs passed.
_MISSED: Final = 0.05
_MOST_RUNS: Final = 30
_NAMES: Final = 3


class Answer(StrEnum):
    """What one run of the test says."""

    PASSED = "passed"
    FAILED = "failed"
    UNKNOWN = "cannot tell"


class State(StrEnum):
    """What a commit is; :attr:`status` is what ``git bisect run`` wants to hear."""

    GOOD = "good"
    BAD = "bad"
    UNKNOWN = "cannot tell"

    @property
    def status(self) -> int:
        return {State.GOOD: 0, State.BAD: 1, State.UNKNOWN: 125}[self]


@dataclass(frozen=True, slots=True)
class Said:
    """A run's answer. :ivar why: in words, empty where the test passed."""

    answer: Answer
    why: str = ""


@dataclass(frozen=True, slots=True)
class Ruling:
    """What a commit is. :ivar why: in words. :ivar runs: how often the test was run. :ivar failed: how often it failed.

    :ivar flaky: it did not say the same each time.
    """

    state: State
    why: str
    runs: int = 0
    failed: int = 0
    flaky: bool = False


def read_answer(tally: Tally | None, status: int) -> Said:
    """Return what a run of pytest says. :param tally: of its report, if it left a whole one. :param status: pytest's exit status."""
    verdict = judge(tally, status)
    match verdict.result:
        case "pass":
            return Said(Answer.PASSED)
        case "fail" if tally is not None and tally.states["failed"]:
            return Said(Answer.FAILED, _names(tally.failed) or verdict.reason)
        case _:
            return Said(Answer.UNKNOWN, verdict.reason)


def rule(ask: Callable[[], Said], runs: int, *, intermittent: bool = False) -> Ruling:
    """Return what a commit is, after so many runs that say the same; the first that cannot tell ends it.

    :param ask: runs the test once. :param intermittent: the fault is known to show only now and then, and never where it is not: one
        failure makes the commit bad at once. Otherwise a commit that is flaky is asked ``runs + 1`` times more, for the share of its
        failures, and cannot be told.
    """
    said: list[Said] = []
    wanted = runs
    while len(said) < wanted:
        said.append(ask())
        last, failed = said[-1], _failed(said)
        if last.answer is Answer.UNKNOWN:
            return Ruling(State.UNKNOWN, last.why, len(said), failed)
        if failed and intermittent:
            return Ruling(State.BAD, _share(said), len(said), failed, flaky=failed < len(said))
        if 0 < failed < len(said):
            wanted = 2 * runs + 1
    failed = _failed(said)
    if 0 < failed < len(said):
        return Ruling(State.UNKNOWN, f"flaky: {_share(said)}", len(said), failed, flaky=True)
    return Ruling(State.BAD if failed else State.GOOD, _share(said), len(said), failed)


def runs_to_trust(failed: int, runs: int) -> int:
    """Return how many runs must pass until a fault that showed in ``failed`` of ``runs`` would have shown: all but 1 time in 20."""
    if failed >= runs:
        return 1
    return min(_MOST_RUNS, math.ceil(math.log(_MISSED) / math.log(1 - failed / runs)))


def _failed(said: Sequence[Said]) -> int:
    return sum(one.answer is Answer.FAILED for one in said)


def _share(said: Sequence[Said]) -> str:
    failed = [one for one in said if one.answer is Answer.FAILED]
    if not failed:
        return f"passed, {len(said)} of {len(said)} runs"
    return f"failed, {len(failed)} of {len(said)} runs: {failed[0].why}"


def _names(failed: Sequence[str]) -> str:
    more = f" and {len(failed) - _NAMES} more" if len(failed) > _NAMES else ""
    return ", ".join(failed[:_NAMES]) + more
