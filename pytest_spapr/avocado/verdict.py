"""What a task of the nightly came to: from pytest's report on each of its tests, never from its exit status alone.

pytest's exit status is 0 also where every test was skipped or failed as expected. A task is ``pass`` only where each test passed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from xml.etree import ElementTree

from pytest_spapr.qemu.process import exit_in_words

#: pytest.ExitCode: whether these are all that failed is then told by the report.
_OK: Final = 0
_TESTS_FAILED: Final = 1
_WHY: Final = {
    2: "pytest was interrupted",
    3: "pytest had an internal error",
    4: "pytest refused its arguments: what was named cannot be had",
    5: "pytest found no test to run",
}
#: In what order a task's tests are counted, worst first.
STATES: Final = ("failed", "error", "xfailed", "skipped", "passed")


@dataclass(slots=True)
class Tally:
    """How the tests of a task ended. :ivar states: number of tests, by :data:`STATES`. :ivar outcomes: number of unplugs, by outcome.

    :ivar defects: how often each known defect was met. :ivar failed: the names of the tests that failed or had an error.
    """

    states: Counter[str] = field(default_factory=Counter)
    outcomes: Counter[str] = field(default_factory=Counter)
    defects: Counter[str] = field(default_factory=Counter)
    failed: list[str] = field(default_factory=list)

    def facts(self) -> dict[str, Any]:
        """Return all of it, for JSON."""
        return {"states": self.states, "outcomes": self.outcomes, "defects": self.defects, "failed": self.failed}

    def words(self) -> str:
        """Return the states in words: ``1 failed, 3 passed``."""
        return ", ".join(f"{self.states[state]} {state}" for state in STATES if self.states[state])


@dataclass(frozen=True, slots=True)
class Verdict:
    """What Avocado is told. :ivar result: one of its words for results. :ivar reason: why it is not ``pass``."""

    result: str
    reason: str = ""


def read_junit(report: Path) -> Tally | None:
    """Return what pytest's ``--junitxml`` tells of a task; None where there is no whole report: the run did not come to its end."""
    try:
        cases = ElementTree.parse(report).getroot().iter("testcase")  # noqa: S314 - pytest wrote it, a moment ago
        return _tally(cases)
    except (FileNotFoundError, ElementTree.ParseError):
        return None


def judge(tally: Tally | None, status: int) -> Verdict:
    """Return what a task came to.

    :param status: pytest's exit status, as ``Popen.returncode``.
    """
    if status not in (_OK, _TESTS_FAILED):
        return Verdict("error", _WHY.get(status, f"pytest {exit_in_words(status)}"))
    if tally is None:
        return Verdict("error", f"pytest {exit_in_words(status)} and left no report")
    states = tally.states
    if states["failed"]:
        return Verdict("fail", tally.words())
    if states["error"]:
        return Verdict("error", tally.words())
    if status == _TESTS_FAILED:
        return Verdict("error", f"pytest {exit_in_words(status)}, and its report has no failure")
    if not states:
        return Verdict("error", _WHY[5])
    if states["skipped"] == states.total():
        return Verdict("skip", tally.words())
    if states["skipped"] or states["xfailed"]:
        return Verdict("warn", tally.words())
    return Verdict("pass")


def _tally(cases: Iterable[ElementTree.Element]) -> Tally:
    tally = Tally()
    for case in cases:
        state = state_of(case)
        tally.states[state] += 1
        if state in ("failed", "error"):
            tally.failed.append(f"{case.get('classname', '')}::{case.get('name', '')}")
        for one in case.iter("property"):
            name, value = one.get("name", ""), one.get("value", "")
            if name == "spapr_outcomes":
                for pair in value.split():
                    outcome, _, count = pair.partition("=")
                    tally.outcomes[outcome] += int(count)
            elif name == "spapr_defects":
                tally.defects.update(value.split())
    return tally


def state_of(case: ElementTree.Element) -> str:
    """Return what became of a test, one of :data:`STATES`. :param case: its ``testcase`` in the report."""
    # A test that failed may also have an error in its teardown.
    if case.find("failure") is not None:
        return "failed"
    if case.find("error") is not None:
        return "error"
    skipped = case.find("skipped")
    if skipped is None:
        return "passed"
    return "skipped" if skipped.get("type") == "pytest.skip" else "xfailed"
