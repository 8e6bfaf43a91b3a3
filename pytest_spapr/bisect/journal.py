"""What steps tell the search, a line of JSON each: how far they are, and what a commit is. Steps are processes of git's."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pytest_spapr.bisect.asking import Ruling, State
from pytest_spapr.progress import Progress


@dataclass(frozen=True, slots=True)
class Told:
    """What a step found. :ivar commit: the full hash. :ivar building: seconds that its build took. :ivar testing: those of all runs."""

    commit: str
    ruling: Ruling
    building: float
    testing: float


@dataclass(frozen=True, slots=True)
class Broken:
    """A step that could do nothing, for a reason that is not the commit's. :ivar message: why."""

    message: str


class Journal:
    """Writes for a step; it is a :class:`Progress`."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def phase(self, text: str) -> None:
        self._write("phase", text)

    def update(self, done: int, total: int, text: str) -> None:
        self._write("update", [done, total, text])

    def done(self) -> None:
        """A step's end is told by what it found."""

    def tell(self, told: Told | Broken) -> None:
        self._write(type(told).__name__, asdict(told))

    def _write(self, kind: str, what: object) -> None:
        with self._path.open("a", encoding="utf-8") as stream:
            stream.write(f"{json.dumps([kind, what])}\n")


class Reader:
    """Reads a journal while it is written."""

    def __init__(self, path: Path) -> None:
        path.touch()
        self._stream = path.open(encoding="utf-8")
        self._part = ""

    def close(self) -> None:
        self._stream.close()

    def news(self, progress: Progress) -> Iterator[Told | Broken]:
        """Yield what was found since the last call; hand on to ``progress`` how far steps are."""
        self._part += self._stream.read()
        *lines, self._part = self._part.split("\n")
        for line in lines:
            kind, what = json.loads(line)
            match kind:
                case "phase":
                    progress.phase(what)
                case "update":
                    progress.update(*what)
                case "Told":
                    yield _told(what)
                case _:
                    yield Broken(**what)


def _told(what: dict[str, Any]) -> Told:
    ruling = what.pop("ruling")
    return Told(ruling=Ruling(**{**ruling, "state": State(ruling["state"])}), **what)
