"""``spapr coverage``: what of its checklist the suite covers."""

from __future__ import annotations

import argparse
import json
import textwrap
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

from pytest_spapr.cli import connectors
from pytest_spapr.cli.run import Areas, Run, number_of
from pytest_spapr.coverage.scenarios import Scenario, counts, read_scenarios
from pytest_spapr.errors import ConfigError

_COMPLETE, _INCOMPLETE = 0, 1
_WIDTH = 130
_INDENT = " " * 16


def add(areas: Areas, common: argparse.ArgumentParser) -> None:
    """Add the command ``coverage``."""
    parser = areas.add_parser(
        "coverage",
        parents=[common],
        help="what the suite covers",
        description="Show every scenario of the suite's checklist with the tests that cover it, the reason why it cannot exist on a "
        "pseries machine, or that it is open. With --drc: what test runs drove QEMU's connectors through, of all that "
        "hw/ppc/spapr_drc.c knows.",
        epilog="Exit status: 0 nothing is missing (with --drc: the floor is reached), 1 something is, 2 it cannot be told.",
    )
    parser.add_argument("--missing", action="store_true", help="show only what is missing")
    parser.add_argument("--json", action="store_true", help="write JSON")
    parser.add_argument("--tests", metavar="DIR", help="tests with their checklist.toml (default: those of this checkout)")
    parser.add_argument(
        "--drc",
        nargs="?",
        const="artefacts",
        metavar="ARTEFACTS_DIR",
        help="show connectors instead, of all runs with --spapr-coverage that left their record in or below this directory "
        "(default: artefacts)",
    )
    parser.add_argument(
        "--floor",
        type=number_of("pairs"),
        metavar="N",
        help="with --drc: fail if less than N pairs of state and transition were driven",
    )
    parser.set_defaults(run=_coverage)


def _coverage(run: Run) -> int:
    arguments = run.arguments
    if arguments.drc is not None:
        if arguments.tests is not None:
            raise ConfigError("--tests has no meaning with --drc, which reads what runs left: leave out one of them.")
        return connectors.show(Path(arguments.drc), floor=arguments.floor, missing=arguments.missing, as_json=arguments.json)
    if arguments.floor is not None:
        raise ConfigError("--floor is for --drc: give both. Without --drc any open id fails the command.")
    scenarios = read_scenarios(_tests(arguments.tests))
    shown = [one for one in scenarios if one.state.open or not arguments.missing]
    if arguments.json:
        summed = {str(state): count for state, count in counts(scenarios).items()}
        print(json.dumps({"counts": summed, "ids": [one.described() for one in shown]}, indent=2))
    else:
        for theme, members in groupby(shown, key=lambda one: one.entry.theme):
            print(theme)
            for one in members:
                print("\n".join(_lines(one)))
            print()
        print(f"{len(scenarios)} ids: {', '.join(f'{count} {state}' for state, count in counts(scenarios).items())}")
    return _INCOMPLETE if any(one.state.open for one in scenarios) else _COMPLETE


def _tests(named: str | None) -> Path:
    if named is not None:
        directory = Path(named)
        if not directory.is_dir():
            raise ConfigError(f"--tests={named} is no directory: give the tests of a checkout.")
        return directory.resolve()
    # The wheel carries only a part of the tests: what the others cover would count as open.
    directory = Path(__file__).resolve().parents[2] / "tests"
    if not directory.is_dir():
        raise ConfigError(
            "this package was installed without its tests, which say what they cover: give --tests=DIR, those of a checkout."
        )
    return directory


def _lines(one: Scenario) -> Iterator[str]:
    entry = one.entry
    yield textwrap.fill(entry.title, _WIDTH, initial_indent=f"  {entry.id}  {one.state:<10}", subsequent_indent=_INDENT)
    for what, text in (("cannot exist", entry.reason), ("in part cannot exist", entry.exempt), ("left", entry.left)):
        if text is not None:
            yield textwrap.fill(f"{what}: {text}", _WIDTH, initial_indent=_INDENT, subsequent_indent=_INDENT + "  ")
    yield from (f"{_INDENT}{test}" for test in one.tests)
