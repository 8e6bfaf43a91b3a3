"""The behaviour sheet: what was observed, scenario by build, as Markdown and as JSON. ``sheet_page`` has it as HTML.

Nothing of it differs from run to run where the behaviour is the same, except for the seconds and the evidence in the JSON and the page.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from typing import Final

from pytest_spapr.battery.observation import Observation, Result, in_words
from pytest_spapr.battery.scenarios import Scenario
from pytest_spapr.hotplug.outcome import Kind, Outcome

#: Of the JSON file. A reader refuses another one.
FORMAT: Final = 1
TITLE: Final = "What QEMU does on hot-unplug"
KINDS: Final[Mapping[Kind, str]] = {
    Kind.CORE: "CPU cores",
    Kind.DIMM: "DIMMs",
    Kind.PCI: "PCI devices",
    Kind.PHB: "PCI host bridges",
    Kind.NVDIMM: "NVDIMMs",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Column:
    """A QEMU build with a guest image. :ivar name: what the sheet calls it."""

    name: str
    qemu: str
    accelerator: str
    image: str
    kernel: str


@dataclass(frozen=True, slots=True)
class Cell:
    """One step of a scenario in one column.

    :ivar text: what came of it. :ivar differences: what was not as the contract promises. :ivar one: the observation, if there is one.
    """

    text: str
    differences: tuple[str, ...] = ()
    one: Observation | None = None


@dataclass(frozen=True, slots=True)
class Row:
    """One step of a scenario in all columns."""

    scenario: Scenario
    step: str
    cells: tuple[Cell, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Sheet:
    """What all scenarios showed in all columns.

    :ivar results: by scenario, and in the order of the columns; None where a scenario was not played.
    """

    made_by: str
    columns: tuple[Column, ...]
    scenarios: tuple[Scenario, ...]
    results: Mapping[str, Sequence[Result | None]]

    def rows(self) -> Iterator[Row]:
        """Yield the table's rows, scenario by scenario."""
        for scenario in self.scenarios:
            results = self.results[scenario.name]
            steps = list(dict.fromkeys(one.step for result in results if result for one in result.observations))
            if not steps or any(result and _troubled_after(result, steps) for result in results):
                # Or before the first step; or nothing was played.
                steps.append("end")
            for step in steps:
                yield Row(scenario, step, tuple(_cell(result, step) for result in results))

    @property
    def differences(self) -> int:
        """How many steps were not as their contract promises."""
        return sum(bool(cell.differences) for row in self.rows() for cell in row.cells)

    @property
    def unplayed(self) -> int:
        """How many scenarios did not come to their end, for another reason than a known defect of QEMU."""
        return sum(
            result is None or (result.trouble is not None and result.defect is None)
            for results in self.results.values()
            for result in results
        )


def markdown(sheet: Sheet) -> str:
    """Return the sheet as Markdown."""
    lines = [
        f"# {TITLE}",
        "",
        f"Observed on real guests by `spapr sheet` of {sheet.made_by}; made anew by `ci/sheet`. Not to be edited.",
        "",
    ]
    lines += _table(
        ["", "QEMU", "accelerator", "guest image", "Linux"],
        [[c.name, c.qemu, c.accelerator, c.image, c.kernel] for c in sheet.columns],
    )
    notes: list[str] = []
    for kind, rows in groupby(sheet.rows(), key=lambda row: row.scenario.kind):
        lines += ["", f"## {KINDS[kind]}", ""]
        lines += _table(["", "", *(column.name for column in sheet.columns)], list(_lines(list(rows), sheet, notes)))
    lines += ["", "## Differences from the contracts", ""]
    lines += notes or ["None."]
    return "\n".join(lines) + "\n"


def as_json(sheet: Sheet) -> str:
    """Return the sheet with all that is known as JSON."""
    data = {
        "format": FORMAT,
        "made_by": sheet.made_by,
        "columns": [asdict(column) for column in sheet.columns],
        "scenarios": [
            {
                "name": scenario.name,
                "kind": scenario.kind.value,
                "title": scenario.title,
                "results": {
                    column.name: asdict(result) if result else None
                    for column, result in zip(sheet.columns, sheet.results[scenario.name], strict=True)
                },
            }
            for scenario in sheet.scenarios
        ],
    }
    return json.dumps(data, indent=1, ensure_ascii=False) + "\n"


def _troubled_after(result: Result, steps: Sequence[str]) -> bool:
    """Return whether there was trouble that none of the scenario's steps shows."""
    crashed = any(one.outcome == Outcome.CRASHED for one in result.observations)
    return result.trouble is not None and not crashed and all(map(result.find, steps))


def _cell(result: Result | None, step: str) -> Cell:
    if result is None:
        return Cell("not played")
    one = result.find(step)
    if result.defect is not None and (one is None or one.outcome == Outcome.CRASHED):
        # No difference from the contract: what is known of the build is told by that row.
        return Cell(f"{'QEMU died' if result.crashed else 'not played'}: {result.defect}", one=one)
    if one is not None:
        return Cell(in_words(one), one.differences, one)
    return Cell(result.trouble or "—")


def _lines(rows: Sequence[Row], sheet: Sheet, notes: list[str]) -> Iterator[list[str]]:
    """Yield the cells of a table's lines; what is not as promised gets a number, and a note of it."""
    before = None
    for row in rows:
        first = row.scenario.title if row.scenario is not before else ""
        before = row.scenario
        cells = []
        for column, cell in zip(sheet.columns, row.cells, strict=True):
            mark = ""
            if cell.differences:
                notes.append(f"{len(notes) + 1}. {column.name}, {row.scenario.name}, {row.step}: {'; '.join(cell.differences)}")
                mark = f" **≠ {len(notes)}**"
            cells.append(cell.text + mark)
        yield [first, row.step, *cells]


def _table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> list[str]:
    ruled = [head, ["---"] * len(head), *lines]
    return [f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in ruled]
