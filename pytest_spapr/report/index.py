"""The page of a run: all of its tests, how they ended, and the way to their machines' pages."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Final

from pytest_spapr.printable import printable

if TYPE_CHECKING:
    from pytest_spapr.report.summary import Facts

NAME: Final = "index.html"
_BAD: Final = ("failed", "error")
_NONE: Final = "no outcome"


@dataclass(slots=True)
class Row:
    """A test of the run. :ivar word: its outcome, as pytest calls it. :ivar pages: of its machines, as far as there are any."""

    test: str
    word: str = ""
    seconds: float = 0.0
    what: str = ""
    machines: int = 0
    attempts: str = ""
    defects: str = ""
    pages: list[str] = field(default_factory=list)


class Index:
    """All tests of a run, in the order of their first reports."""

    def __init__(self) -> None:
        self.rows: dict[str, Row] = {}

    def add_phase(self, test: str, word: str, seconds: float) -> None:
        """Count a phase of a test. A later word stands above an earlier one, but for a pass."""
        row = self.rows.setdefault(test, Row(test))
        row.seconds += seconds
        if word and (word != "passed" or not row.word):
            row.word = word

    def add_facts(self, test: str, facts: Facts) -> None:
        """Note what a test's machines were and did."""
        row = self.rows.setdefault(test, Row(test))
        row.what = facts["cell"] or ", ".join(filter(None, (facts["qemu"], facts["kernel"], facts["accel"])))
        row.machines = facts["machines"]
        row.attempts = ", ".join(f"{count} {name}" for name, count in sorted(facts["outcomes"].items()))
        row.defects = ", ".join(facts["defects"])
        row.pages = list(facts["pages"])

    @property
    def has_pages(self) -> bool:
        return any(row.pages for row in self.rows.values())

    def write(self, directory: Path, tested: str) -> Path:
        """Write the run's page and return where it is. :raises OSError: it cannot be written."""
        from pytest_spapr.report.timeline.page import filled, policy

        text = {name: _file(f"index.{name}") for name in ("html", "css", "js")}
        # What failed first; else as they ran. What all have in common stands above.
        ordered = sorted(self.rows.values(), key=lambda row: row.word not in _BAD)
        alike = len({row.what for row in ordered if row.what}) < 2
        filled_in = filled(
            text["html"],
            POLICY=policy(text["js"], text["css"]),
            STYLE=text["css"],
            SCRIPT=text["js"],
            TITLE=_words(directory.name),
            TESTED=_words(tested),
            FILTERS=_filters(ordered),
            ALIKE="alike" if alike else "",
            ROWS="\n".join(_row(row, directory, alike=alike) for row in ordered),
        )
        path = directory / NAME
        path.write_text(filled_in, encoding="utf-8", errors="xmlcharrefreplace")
        return path


def _filters(rows: Iterable[Row]) -> str:
    counts = Counter(row.word or _NONE for row in rows)
    return "".join(
        f'<button data-word="{_class(word)}" aria-pressed="true"><span class="dot {_class(word)}"></span>{_words(word)} '
        f"<small>{count}</small></button>"
        for word, count in sorted(counts.items(), key=lambda one: (one[0] == "passed", one[0]))
    )


def _row(row: Row, directory: Path, *, alike: bool) -> str:
    links = " ".join(_link(page, directory, number) for number, page in enumerate(row.pages, start=1))
    details = ", ".join(filter(None, (row.attempts, f"known defect {row.defects}" if row.defects else "")))
    return (
        f'<tr data-word="{_class(row.word or _NONE)}"><td><span class="dot {_class(row.word)}"></span>{_words(row.word)}</td>'
        f"<td class=test>{_words(row.test)}</td><td class=what>{'' if alike else _words(row.what)}</td>"
        f'<td class="number machines">{row.machines or ""}</td>'
        f'<td>{_words(details)}</td><td class="number seconds">{row.seconds:.2f}</td><td>{links}</td></tr>'
    )


def _link(page: str, directory: Path, number: int) -> str:
    from urllib.parse import quote

    path = Path(page)
    # Relative, so that the directory can be moved or unpacked elsewhere.
    target = quote(path.relative_to(directory).as_posix()) if path.is_relative_to(directory) else path.as_uri()
    return f'<a href="{escape(target)}">{"timeline" if number == 1 else f"machine {number}"}</a>'


def _class(word: str) -> str:
    return "".join(letter if letter.isalnum() else "-" for letter in word) or "none"


def _words(text: str) -> str:
    return escape(printable(text))


def _file(name: str) -> str:
    from importlib import resources

    return (resources.files("pytest_spapr.report.timeline") / "web" / name).read_text(encoding="utf-8")
