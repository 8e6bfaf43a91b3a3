"""``spapr doctor``: what is there of all that is needed, what is missing, and how to mend it."""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Sequence
from typing import Final

from pytest_spapr import config
from pytest_spapr.cli.run import Areas, Run
from pytest_spapr.doctor.check import Check, State, as_json, usable
from pytest_spapr.doctor.examine import examine
from pytest_spapr.printable import printable

_MARKS: Final = {State.FINE: "ok", State.LACKING: "--", State.BROKEN: "NO"}


def add(areas: Areas, common: argparse.ArgumentParser) -> None:
    """Add the area ``doctor`` to the command."""
    parser = areas.add_parser(
        "doctor",
        parents=[common],
        help="what is missing here, and the command that mends it",
        description="Look at all that is needed: Python, its packages, this host, the cache, QEMU builds, guest images, programs. Tells "
        "what is missing and how to mend it. Boots and fetches nothing. Marks: ok, -- (only some commands need it), NO (no test can run).",
        epilog="Exit status: 0 tests can be run, 1 something that every run needs is missing or broken, 2 for an error.",
    )
    parser.add_argument(
        "--qemu", action="append", metavar="PATH|NAME", help="the QEMU under test, as --spapr-qemu (default: SPAPR_QEMU)"
    )
    parser.add_argument(
        "--image", action="append", metavar="NAME|DIRECTORY|DISK", help="the guest image, as --spapr-image (default: SPAPR_IMAGE)"
    )
    parser.add_argument("--json", action="store_true", help="the same for programs; its form is pytest_spapr/doctor/schema.json")
    parser.set_defaults(run=_doctor)


def _doctor(run: Run) -> int:
    given = {name: vars(run.arguments).get(name) for name in ("cache_dir", "debian_mirror", "offline", "qemu", "image")}
    checks = list(examine(config.read_cells(given), run.cache, run.progress))
    if run.arguments.json:
        print(json.dumps(as_json(checks), indent=1))
    else:
        for line in _table(checks):
            print(printable(line))
    return 0 if usable(checks) else 1


def _table(checks: Sequence[Check]) -> list[str]:
    """Return what was found for people: what is wrong with its remedy below it, and a verdict at the end."""
    width = max(len(check.name) for check in checks)
    lines = []
    for theme, members in itertools.groupby(checks, lambda check: check.theme):
        lines.append(theme)
        for check in members:
            lines.append(f"  {_MARKS[check.state]}  {check.name:<{width}}  {check.found}")
            if check.state is not State.FINE:
                if check.needed_for:
                    lines.append(f"      {'':<{width}}  for: {check.needed_for}")
                if check.remedy:
                    lines.append(f"      {'':<{width}}  mend: {check.remedy}")
    return [*lines, _verdict(checks)]


def _verdict(checks: Sequence[Check]) -> str:
    broken, lacking = ([check.name for check in checks if check.state is state] for state in (State.BROKEN, State.LACKING))
    if broken:
        return f"tests cannot be run: {', '.join(broken)}"
    return "tests can be run" + (f"; missing for some commands: {', '.join(lacking)}" if lacking else "")
