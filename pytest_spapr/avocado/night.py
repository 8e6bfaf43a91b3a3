"""A night's results, read from what Avocado wrote down."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from xml.etree import ElementTree

from pytest_spapr.avocado.obtain import CANNOT
from pytest_spapr.avocado.verdict import read_junit
from pytest_spapr.errors import SpaprError

#: What Avocado says of a task whose QEMU build or image could not be had. It counts it as skipped.
_UNSUPPLIED: Final = "Dependency was not fulfilled."
#: Avocado's words for a task that was run, and has no test that failed.
_FINE: Final = frozenset({"PASS", "WARN", "SKIP"})


class NoResults(SpaprError):
    """A job left no results that can be read."""


@dataclass(frozen=True, slots=True)
class Task:
    """A module in a cell. :ivar name: without its number, e.g. ``tests/hotplug/test_boot.py;7.2-debian-12-radix-tcg-1a2b``.

    :ivar status: Avocado's word. :ivar reason: why it is not PASS. :ivar facts: of its tests, see ``Tally.facts``.
    """

    name: str
    status: str
    reason: str
    seconds: float
    directory: Path
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def fine(self) -> bool:
        """Whether it was run, and nothing failed. Whoever was to be skipped was run; a task that had no machine was not."""
        return self.status in _FINE and not self.unsupplied

    @property
    def unsupplied(self) -> bool:
        """Whether it was not run because its QEMU build or its image could not be had."""
        return self.status == "SKIP" and self.reason == _UNSUPPLIED

    def missing(self) -> list[str]:
        """Return why its QEMU build or image could not be had, as whoever was to get them said."""
        said = []
        for log in sorted(self.directory.glob("dependencies/*/stdout")):
            lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
            if lines and lines[-1].startswith(CANNOT):
                said.append(lines[-1])
        return said

    @classmethod
    def from_result(cls, one: Mapping[str, Any]) -> Task:
        """Return a task as ``results.json`` has it."""
        board = one.get("whiteboard") or ""
        reason = one.get("fail_reason") or ""
        return cls(
            name=one["name"],
            status=one["status"],
            reason="" if reason == "<unknown>" else reason,
            seconds=float(one.get("time_elapsed", 0)),
            directory=Path(one["logdir"]),
            facts=json.loads(board) if board.startswith("{") else {},
        )


@dataclass(frozen=True, slots=True)
class Night:
    """All that a job came to. :ivar total: how many tasks it had; those that it did not come to are in no list."""

    job: str
    start: str
    seconds: float
    total: int
    tasks: tuple[Task, ...]

    @property
    def green(self) -> bool:
        """Whether all tasks were run, and nothing failed."""
        return bool(self.tasks) and len(self.tasks) == self.total and all(task.fine for task in self.tasks)

    def statuses(self) -> Counter[str]:
        """Return how many tasks ended how, in Avocado's words; ``NOT RUN`` for those without the things that they need."""
        found = Counter("NOT RUN" if task.unsupplied else task.status for task in self.tasks)
        if left := self.total - len(self.tasks):
            found["NOT RUN"] += left
        return found

    def sum(self, what: str) -> Counter[str]:
        """Return one of the facts of all tasks, added up: ``states``, ``outcomes`` or ``defects``."""
        added: Counter[str] = Counter()
        for task in self.tasks:
            added.update(task.facts.get(what, {}))
        return added


def read_night(directory: Path) -> Night:
    """Return what a job came to.

    :param directory: Avocado's directory of the job. :raises NoResults: it has none.
    """
    file = directory / "results.json"
    try:
        results = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise NoResults(f"the job left no results: {file}: {error}. Its log is {directory / 'job.log'}") from error
    tasks = tuple(Task.from_result(one) for one in results["tests"])
    return Night(results["job_id"], results["start"], results["time"], results["total"], tasks)


def again(task: Task) -> bool:
    """Whether a replay has the task again."""
    return not task.fine


def merged_junit(tasks: Iterable[Task]) -> bytes:
    """Return one junit file with each test of each task, a suite for each task.

    A task that left no report, because it was given up or could not be run, has one test that says so: an error, or a skipped one.
    """
    root = ElementTree.Element("testsuites")
    for task in tasks:
        report = task.directory / "junit.xml"
        if read_junit(report) is None or task.status == "INTERRUPTED":
            root.append(_without_report(task))
            continue
        for suite in ElementTree.parse(report).getroot().iter("testsuite"):  # noqa: S314 - our own task wrote it
            suite.set("name", task.name)
            root.append(suite)
    return bytes(ElementTree.tostring(root, encoding="utf-8", xml_declaration=True))


def _without_report(task: Task) -> ElementTree.Element:
    skipped = task.status == "SKIP" and not task.unsupplied
    counts = {"tests": "1", "failures": "0", "errors": "0" if skipped else "1", "skipped": "1" if skipped else "0"}
    suite = ElementTree.Element("testsuite", {"name": task.name, **counts, "time": f"{task.seconds:.3f}"})
    case = ElementTree.SubElement(suite, "testcase", {"classname": task.name, "name": "the task", "time": f"{task.seconds:.3f}"})
    ElementTree.SubElement(case, "skipped" if skipped else "error", {"message": task.reason or task.status})
    return suite
