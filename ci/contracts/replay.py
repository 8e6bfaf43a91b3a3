"""Holds broken promises against attempts that kept them."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from ci.contracts.facts import broken, described, kept, read_attempt
from pytest_spapr.hotplug.attempt import Attempt
from pytest_spapr.hotplug.expectation import Expectation
from pytest_spapr.hotplug.rows import Row

#: Stands for a test where no test provoked what the row speaks of.
DESCRIPTION: Final = "the attempt that the row itself describes"


@dataclass(slots=True)
class Verdict:
    """What became of one row. :ivar tests: those that held an attempt against it. :ivar noticed: fact -> the tests that would fail.

    :ivar unnoticed: facts that could be anything.
    """

    row: Row
    tests: list[str]
    noticed: dict[str, list[str]] = field(default_factory=dict)
    unnoticed: list[str] = field(default_factory=list)

    @property
    def live(self) -> bool:
        """Whether a test of the recorded run speaks for the row."""
        return self.tests != [DESCRIPTION]


Recorded = Mapping[str, Sequence[tuple[str, Attempt]]]


def read(directory: Path) -> Recorded:
    """Return what was recorded: promise -> the tests that compared, with their attempts."""
    found: dict[str, list[tuple[str, Attempt]]] = defaultdict(list)
    for path in sorted(directory.glob("*.jsonl")):
        for line in path.read_text(encoding="utf-8").splitlines():
            entry = json.loads(line)
            found[_key(entry["promised"])].append((entry["test"], read_attempt(entry["attempt"])))
    return found


def judge(rows: Iterable[Row], recorded: Recorded) -> list[Verdict]:
    """Break each fact of each row; return who notices."""
    return [_judge(row, recorded.get(_key(described(row.expectation)), ())) for row in rows]


def _judge(row: Row, attempts: Sequence[tuple[str, Attempt]]) -> Verdict:
    attempts = attempts or [(DESCRIPTION, kept(row.expectation))]
    verdict = Verdict(row, sorted({test for test, _ in attempts}))
    for fact, wrong in broken(row.expectation):
        tests = sorted({test for test, attempt in attempts if _differs(attempt, wrong)})
        if tests:
            verdict.noticed[fact] = tests
        else:
            verdict.unnoticed.append(fact)
    return verdict


def _differs(attempt: Attempt, wrong: Expectation) -> bool:
    return attempt != wrong


def _key(promised: Mapping[str, Any]) -> str:
    return json.dumps(promised, sort_keys=True)
