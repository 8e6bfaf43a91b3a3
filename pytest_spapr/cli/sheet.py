"""``spapr sheet``: what QEMU builds do, as a table."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Final

from pytest_spapr.battery.observation import Result
from pytest_spapr.battery.scenarios import chosen
from pytest_spapr.cells import Cell
from pytest_spapr.cli.battery import add_options, obtain, settings_of
from pytest_spapr.cli.crew import Task, play
from pytest_spapr.cli.run import Areas, Run, writable
from pytest_spapr.config import Settings
from pytest_spapr.report.sheet import Column, Sheet, as_json, markdown
from pytest_spapr.report.sheet_page import page

#: What the files are called.
_NAME: Final = "behaviour"
_TRIES: Final = 3


def add(areas: Areas, common: argparse.ArgumentParser) -> None:
    """Add the area ``sheet`` to the command."""
    parser = areas.add_parser(
        "sheet",
        parents=[common],
        help="what QEMU builds do, as a table",
        description="Play the battery of unplug scenarios on each QEMU build with each guest image, and write what was observed as "
        f"one table: {_NAME}.md, {_NAME}.json and {_NAME}.html. What differs from its contract is marked.",
        epilog="Exit status: 0 all as the contracts promise, 1 something differs, 2 a scenario did not come to its end, or an error.",
    )
    parser.add_argument(
        "--qemu", action="append", metavar="PATH|NAME", help="a QEMU build, as --spapr-qemu names it; may be repeated"
    )
    parser.add_argument(
        "--image", action="append", metavar="NAME|DIRECTORY|DISK", help="a guest image (default: debian-12); may be repeated"
    )
    parser.add_argument(
        "--output", type=Path, default=Path(), metavar="DIR", help="where the files go (default: the current directory)"
    )
    add_options(parser)
    parser.set_defaults(run=_sheet)


def _sheet(run: Run) -> int:
    arguments = run.arguments
    scenarios = chosen(arguments.scenario)
    directory = writable(arguments.output)
    settings = settings_of(run, qemu=arguments.qemu, image=arguments.image)
    cells = obtain(run, settings)
    results = _played(run, settings, [scenario.name for scenario in scenarios])
    columns = tuple(map(_column, cells, _names(cells)))
    made_by = f"pytest-spapr {version('pytest-spapr')}"
    sheet = Sheet(made_by=made_by, columns=columns, scenarios=scenarios, results=results)
    for suffix, text in (("md", markdown(sheet)), ("json", as_json(sheet)), ("html", page(sheet))):
        (directory / f"{_NAME}.{suffix}").write_text(text, encoding="utf-8")
    _tell(sheet, directory)
    return 2 if sheet.unplayed else 1 if sheet.differences else 0


def _played(run: Run, settings: Sequence[Settings], scenarios: Sequence[str]) -> dict[str, list[Result | None]]:
    """Play all scenarios on all cells. One that a known defect of QEMU ends is tried again: some show only now and then."""
    results: dict[str, list[Result | None]] = {name: [None] * len(settings) for name in scenarios}
    left = [Task(cell, name) for name in scenarios for cell in range(len(settings))]
    for number in range(1, _TRIES + 1):
        phase = f"{len(left)} scenarios" + (f", try {number}" if number > 1 else "")
        for task, result in play(settings, left, run.progress, phase):
            results[task.scenario][task.cell] = result
        left = [task for task in left if (seen := results[task.scenario][task.cell]) is None or (seen.crashed and seen.defect)]
        if not left:
            break
    return results


def _tell(sheet: Sheet, directory: Path) -> None:
    for scenario in sheet.scenarios:
        for column, result in zip(sheet.columns, sheet.results[scenario.name], strict=True):
            if result is not None and result.trouble is not None:
                known = f"known defect {result.defect}: " if result.defect else ""
                sys.stderr.write(f"{scenario.name} on {column.name} did not come to its end: {known}{result.trouble}\n")
    print(f"{directory / _NAME}.md, .json, .html: {sheet.differences} steps differ from their contracts")


def _names(cells: Sequence[Cell]) -> list[str]:
    """Return what the columns are called: their builds, and their images too where there are several."""
    if len(cells) == 1:
        build = cells[0].build()
        # A path says nothing to whoever reads the sheet elsewhere.
        return [".".join(map(str, build.version)) if "/" in build.name else build.name]
    suffixes = {f"-{Path(cell.image().name).name}" for cell in cells}
    return [cell.id.removesuffix(next(iter(suffixes))) if len(suffixes) == 1 else cell.id for cell in cells]


def _column(cell: Cell, name: str) -> Column:
    build, image = cell.build(), cell.image()
    return Column(
        name=name,
        qemu=build.version_text,
        accelerator=cell.accelerator(),
        image=Path(image.name).name,
        kernel=image.kernel_release,
    )
