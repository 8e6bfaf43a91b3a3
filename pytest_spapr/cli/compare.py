"""``spapr compare``: what a QEMU build does otherwise than another one."""

from __future__ import annotations

import argparse
import sys

from pytest_spapr.battery.compare import Comparison, Verdict, compare
from pytest_spapr.battery.observation import Result
from pytest_spapr.battery.scenarios import chosen, named
from pytest_spapr.cli.battery import add_options, obtain, settings_of
from pytest_spapr.cli.crew import Task, play
from pytest_spapr.cli.run import Areas, Run, number_of
from pytest_spapr.config import Settings
from pytest_spapr.errors import ConfigError

_SAME, _CHANGED, _UNKNOWN = 0, 1, 2


def add(areas: Areas, common: argparse.ArgumentParser) -> None:
    """Add the area ``compare`` to the command."""
    parser = areas.add_parser(
        "compare",
        parents=[common],
        help="what a QEMU does otherwise than another one",
        description="Play the battery of unplug scenarios on two QEMU builds and print only what changed. A scenario that differs is "
        "played again: what varies from run to run on one build is no change.",
        epilog="Exit status: 0 all the same, 1 something changed, 2 nothing is known to have changed, but not all could be told.",
    )
    for name in ("old", "new"):
        parser.add_argument(name, metavar=name.upper(), help="a QEMU build, as --spapr-qemu names it")
    parser.add_argument("--image", metavar="NAME|DIRECTORY|DISK", help="guest image (default: SPAPR_IMAGE, else debian-12)")
    parser.add_argument(
        "--runs",
        type=number_of("runs"),
        default=3,
        metavar="N",
        help="how often a scenario that differs is played on each (default: 3)",
    )
    add_options(parser)
    parser.set_defaults(run=_compare)


def _compare(run: Run) -> int:
    arguments = run.arguments
    scenarios = [one.name for one in chosen(arguments.scenario)]
    settings = tuple(settings_of(run, qemu=side, image=arguments.image)[0] for side in (arguments.old, arguments.new))
    cells = obtain(run, settings)
    if cells[0].accelerator() != cells[1].accelerator():
        raise ConfigError(
            f"{arguments.old} runs with {cells[0].accelerator()} here, {arguments.new} with {cells[1].accelerator()}."
        )
    for cell, side in zip(cells, ("old", "new"), strict=True):
        sys.stderr.write(f"{side}: {cell.build().version_text}, {cell.accelerator()}, Linux {cell.image().kernel_release}\n")
    found = _played(run, settings, scenarios)
    for one in found:
        _show(one)
    verdicts = {one.verdict for one in found}
    return _CHANGED if Verdict.CHANGED in verdicts else _UNKNOWN if Verdict.UNKNOWN in verdicts else _SAME


def _played(run: Run, settings: tuple[Settings, ...], scenarios: list[str]) -> list[Comparison]:
    results: dict[Task, list[Result]] = {Task(cell, name): [] for name in scenarios for cell in (0, 1)}
    left = scenarios
    for number in range(1, run.arguments.runs + 1):
        tasks = [Task(cell, name) for name in left for cell in (0, 1)]
        phase = f"run {number}: {len(left)} {'scenario' if len(left) == 1 else 'scenarios'} on both"
        for task, result in play(settings, tasks, run.progress, phase):
            results[task].append(result)
        found = {name: compare(name, results[Task(0, name)], results[Task(1, name)]) for name in scenarios}
        left = [name for name in scenarios if found[name].verdict is not Verdict.SAME]
        if not left:
            break
    return list(found.values())


def _show(one: Comparison) -> None:
    if one.verdict is Verdict.SAME:
        return
    title = named(one.scenario).title
    if one.verdict is Verdict.CHANGED:
        print(f"{one.scenario} ({title})")
        for change in one.changes:
            print(f"  {change}")
        return
    sys.stderr.write(f"{one.scenario} ({title}): could not be told\n")
    for line in one.why:
        sys.stderr.write(f"  {line}\n")
