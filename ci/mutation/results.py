"""What noticed which break: a line of JSON for each, and a table for the documentation."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from ci.mutation.breaks import Break
from pytest_spapr.errors import ConfigError

_FILE: Final = "results.jsonl"
_BEGIN, _END = "<!-- table -->", "<!-- end of the table -->"


@dataclass(frozen=True, kw_only=True, slots=True)
class Result:
    """What came of a break.

    :ivar key: of its patch, see :func:`key`. :ivar by: the watcher that noticed it; empty if none did. :ivar said: in its own words.
    :ivar seconds: of the build and of each watcher. :ivar problems: of watchers that could not watch, or cried without cause.
    """

    name: str
    key: str
    by: str = ""
    said: str = ""
    seconds: Mapping[str, float] = field(default_factory=dict)
    problems: Sequence[str] = ()


def key(patch: str) -> str:
    """Return what tells a break from one of the same name that breaks something else."""
    return hashlib.sha256(patch.encode()).hexdigest()[:16]


class Results:
    """Those of a directory: a later one of the same break counts."""

    def __init__(self, directory: Path) -> None:
        self._file = directory / _FILE

    def add(self, result: Result) -> None:
        """Add a result: one write at the end of the file."""
        with self._file.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(asdict(result)) + "\n")

    def read(self) -> dict[str, Result]:
        """Return the results by the breaks' names. :raises ConfigError: the file is not what :meth:`add` wrote."""
        if not self._file.exists():
            return {}
        found = {}
        for number, text in enumerate(self._file.read_text(encoding="utf-8").splitlines(), start=1):
            try:
                one: dict[str, Any] = json.loads(text)
                result = Result(**one)
            except (ValueError, TypeError) as error:
                raise ConfigError(f"{self._file}:{number} is no result: {error}. Remove the line.") from error
            found[result.name] = result
        return found


def table(breaks: Collection[Break], results: Mapping[str, Result]) -> str:
    """Return a table of all breaks that were tried, in Markdown."""
    tried = [(one, results[one.name]) for one in breaks if one.name in results]
    lines = ["| break | where | why it is wrong | noticed by | how |", "|---|---|---|---|---|"]
    for one, result in tried:
        where = f"`{one.file}`" + (f", `{one.function}`" if one.function else "")
        cells = (f"`{one.name}`", where, one.why, result.by or "**nobody**", _code(result.said))
        lines.append("| " + " | ".join(cells) + " |")
    noticed = sum(bool(result.by) for _, result in tried)
    count = f"{noticed} of {len(tried)} were noticed"
    left = len(breaks) - len(tried)
    return "\n".join([f"{count}{f'; {left} were not tried yet' if left else ''}.", "", *lines])


def write_table(page: Path, text: str) -> None:
    """Put a table into a page, in place of the one that is there.

    :raises ConfigError: the page cannot be read or written, or has no place for it.
    """
    try:
        before, begin, rest = page.read_text(encoding="utf-8").partition(f"{_BEGIN}\n")
        _, end, after = rest.partition(_END)
        if not begin or not end:
            raise ConfigError(f"{page}: expected the lines {_BEGIN} and {_END}, between which the table goes.")
        page.write_text(f"{before}{begin}{text}\n{end}{after}", encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{page}: {error.strerror}") from error


def _code(text: str) -> str:
    # A bar would end the cell, also within backticks.
    return f"`{text}`".replace("|", "\\|") if text else ""
