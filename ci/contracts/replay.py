"""Holds broken promises against attempts that kept them."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Final, Self

from ci.contracts.facts import broken, described, read_attempt
from ci.contracts.generations import QEMUS, of
from pytest_spapr.hotplug.attempt import Attempt
from pytest_spapr.hotplug.contract import Contract
from pytest_spapr.hotplug.expectation import Expectation
from pytest_spapr.hotplug.rows import Row, version

#: The test that holds the attempts below against the rows.
UNIT_TEST: Final = "tests/unit/test_contract.py::test_an_attempt_on_record_is_as_promised"
RECORD: Final = Path(__file__).parents[2] / "tests" / "unit" / "attempts.jsonl"


@dataclass(frozen=True, slots=True)
class OnRecord:
    """An attempt that stands in the tests. :ivar qemu: :ivar linux: generations. :ivar seen: where; ``live``, or what was read."""

    qemu: str
    linux: str
    situation: str
    seen: str
    attempt: Attempt

    @classmethod
    def read(cls, line: str) -> Self:
        """Return the attempt that a line of the file describes."""
        entry = json.loads(line)
        return cls(**entry | {"attempt": read_attempt(entry["attempt"])})

    def line(self) -> str:
        """Return it as a line of the file."""
        return json.dumps(asdict(self), ensure_ascii=False)

    def contract(self) -> Contract:
        """Return the contract that it was made under."""
        return Contract(QEMUS[self.qemu], self.linux, qemu=version(self.qemu.partition("+")[0]))


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
    def live(self) -> list[str]:
        """The tests of the recorded run that speak for the row."""
        return [test for test in self.tests if test != UNIT_TEST]


Recorded = Mapping[str, Sequence[tuple[str, Attempt]]]


def read(directory: Path) -> Recorded:
    """Return what was recorded: promise -> the tests that compared, with their attempts."""
    found: dict[str, list[tuple[str, Attempt]]] = defaultdict(list)
    for path in sorted(directory.glob("*.jsonl")):
        for line in path.read_text(encoding="utf-8").splitlines():
            entry = json.loads(line)
            found[_key(entry["promised"])].append((entry["test"], read_attempt(entry["attempt"])))
    return found


def on_record() -> list[OnRecord]:
    """Return the attempts that stand in the tests."""
    return [OnRecord.read(line) for line in RECORD.read_text(encoding="utf-8").splitlines()]


def keep(rows: Iterable[Row], recorded: Recorded, record: Sequence[OnRecord], qemu: str) -> list[OnRecord]:
    """Return an attempt of a recorded run for each row that has none on record.

    :param qemu: the generation that was run.
    """
    spoken = {key for key, _ in _standing(record)}
    found = []
    for row in rows:
        key = _key(described(row.expectation))
        generation = of(row, [qemu])
        if key in recorded and key not in spoken and generation is not None:
            _, attempt = recorded[key][0]
            # What every run has anew is of no interest.
            events = tuple({name: value for name, value in event.items() if name != "timestamp"} for event in attempt.events)
            lasting = replace(attempt, events=events, evidence=(), elapsed=round(attempt.elapsed, 3), began=0, ended=1)
            found.append(OnRecord(*generation, row.subject[1], "live", lasting))
    return found


def judge(rows: Iterable[Row], recorded: Recorded, record: Sequence[OnRecord]) -> list[Verdict]:
    """Break each fact of each row; return who notices."""
    standing = _standing(record)
    verdicts = []
    for row in rows:
        key = _key(described(row.expectation))
        known = [(UNIT_TEST, attempt) for promised, attempt in standing if promised == key]
        verdicts.append(_judge(row, [*recorded.get(key, ()), *known]))
    return verdicts


def _standing(record: Sequence[OnRecord]) -> list[tuple[str, Attempt]]:
    """Return each attempt on record with the promise that speaks of it."""
    return [(_key(described(one.contract().expect(one.attempt.kind, one.situation))), one.attempt) for one in record]


def _judge(row: Row, attempts: Sequence[tuple[str, Attempt]]) -> Verdict:
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
