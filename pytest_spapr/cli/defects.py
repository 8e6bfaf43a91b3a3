"""``spapr defects``: what the suite knows to be wrong with QEMU and Linux."""

from __future__ import annotations

import argparse
import textwrap

from pytest_spapr.cli.run import Areas, Run
from pytest_spapr.errors import ConfigError
from pytest_spapr.hotplug.defects import KNOWN_DEFECTS, KnownDefect

_WIDTH = 120
_QEMU = ("qemu-system-ppc64",)


def add(areas: Areas, common: argparse.ArgumentParser) -> None:
    """Add the command ``defects``."""
    parser = areas.add_parser(
        "defects",
        parents=[common],
        help="known defects of QEMU and Linux",
        description="List the known defects of QEMU and Linux that the suite meets, or tell all about one.",
    )
    parser.add_argument("id", nargs="?", metavar="ID", help="a defect as the list shows it (default: list them)")
    parser.set_defaults(run=_defects)


def _defects(run: Run) -> None:
    wanted = run.arguments.id
    if wanted is None:
        for defect in KNOWN_DEFECTS.values():
            print(f"{defect.id:<32} {defect.summary}")
    elif wanted in KNOWN_DEFECTS:
        _tell(KNOWN_DEFECTS[wanted])
    else:
        raise ConfigError(f"no known defect is called {wanted!r}; there are {', '.join(KNOWN_DEFECTS)}.")


def _tell(defect: KnownDefect) -> None:
    under = "" if len(defect.accelerators) > 1 else f", under {', '.join(defect.accelerators).upper()}"
    rows = (
        ("what", defect.summary),
        ("shows", "every time" if defect.certain else "now and then"),
        ("where seen", f"{defect.seen}{under}"),
        ("since", defect.since),
        ("fixed in", defect.fixed),
        ("reference", defect.reference),
    )
    print(defect.id)
    for name, text in rows:
        print(textwrap.fill(text, _WIDTH, initial_indent=f"  {name + ':':<12}", subsequent_indent=" " * 14))
    if defect.reproducer is None:
        print("  needs a guest: the suite's tests show it, see tests/hotplug")
        return
    print(f"  without a guest, QEMU {defect.reproducer.symptom}; one without the defect ends with status 0:\n")
    print(textwrap.indent(defect.reproducer.shell(_QEMU), "    "))
