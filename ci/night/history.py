"""All nights that ended, a line of JSON for each: which was green last, and what the trend is."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pytest_spapr.avocado.night import Night
from pytest_spapr.errors import ConfigError

_FILE = "nights.jsonl"


@dataclass(frozen=True, slots=True)
class Line:
    """What stays of a night. :ivar directory: Avocado's, by name. :ivar matrix: whose cells it ran; nights of others are others'.

    :ivar statuses: tasks, :ivar states: tests, :ivar outcomes: unplugs, each counted. :ivar failed: names of the tasks that were not
        fine.
    """

    job: str
    directory: str
    matrix: str
    start: str
    seconds: float
    green: bool
    statuses: Mapping[str, int]
    states: Mapping[str, int]
    outcomes: Mapping[str, int]
    defects: Mapping[str, int]
    failed: list[str]

    @classmethod
    def of(cls, night: Night, directory: Path, matrix: str, seconds: float) -> Line:
        """Return what stays of a night. :param seconds: how long it took; Avocado's own number is the sum of its tasks."""
        return cls(
            job=night.job,
            directory=directory.name,
            matrix=matrix,
            start=night.start,
            seconds=seconds,
            green=night.green,
            statuses=dict(night.statuses()),
            states=dict(night.sum("states")),
            outcomes=dict(night.sum("outcomes")),
            defects=dict(night.sum("defects")),
            failed=[task.name for task in night.tasks if not task.fine],
        )


class History:
    """The nights of a results directory."""

    def __init__(self, results: Path) -> None:
        self._results = results
        self._file = results / _FILE

    def add(self, line: Line) -> None:
        """Add a night. It is one write at the end of the file: a killed nightly leaves no half of one but the last."""
        with self._file.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(asdict(line)) + "\n")

    def lines(self, matrix: str) -> list[Line]:
        """Return the nights of a matrix, oldest first. :raises ConfigError: the file is not what :meth:`add` wrote."""
        if not self._file.exists():
            return []
        found = []
        for number, text in enumerate(self._file.read_text(encoding="utf-8").splitlines(), start=1):
            try:
                one: dict[str, Any] = json.loads(text)
                line = Line(**one)
            except (ValueError, TypeError) as error:
                raise ConfigError(f"{self._file}:{number} is no night: {error}. Remove the line.") from error
            if line.matrix == matrix:
                found.append(line)
        return found

    def last_green(self, matrix: str, before: str) -> Path | None:
        """Return the directory of the matrix's newest green night, if it is still there. :param before: a job that does not count."""
        for line in reversed(self.lines(matrix)):
            directory = self._results / line.directory
            if line.green and line.job != before and directory.is_dir():
                return directory
        return None
