"""The ``spapr`` command: what the plugin needs, by hand. Exit status 0, or 2 with one clear message on stderr; where a command
finds something out, 1 says so."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from collections.abc import Sequence

from pytest_spapr.cli import (
    bisect,
    boot,
    builds,
    compare,
    coverage,
    defects,
    doctor,
    explore,
    images,
    sheet,
    shell,
    templates,
    timeline,
)
from pytest_spapr.cli.run import Run
from pytest_spapr.errors import SpaprError
from pytest_spapr.progress import finished, progress_for


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status.

    :param argv: without the program's name; by default the process's.
    """
    arguments = make_parser().parse_args(argv)
    progress = progress_for(sys.stderr, shutil.get_terminal_size().columns - 1)
    try:
        with finished(progress):
            # Most commands have nothing to say but that they did it.
            status: int | None = arguments.run(Run(arguments, progress))
    except SpaprError as error:
        print(f"spapr: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # Its reader has seen enough, as `head` has. What Python would still flush at its end goes nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    return status or 0


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="spapr",
        description="Makes and keeps what pytest-spapr runs: guest images and QEMU builds, out of Debian's packages, without root; "
        "keeps the templates of its machines, and tells what QEMU builds do and what the suite covers.",
        epilog="The variables SPAPR_CACHE_DIR, SPAPR_DEBIAN_MIRROR and SPAPR_OFFLINE stand for the options of the same name.",
    )
    common = argparse.ArgumentParser(add_help=False)
    group = common.add_argument_group("where from and where to")
    group.add_argument("--cache-dir", metavar="DIR", help="the cache (default: pytest-spapr in the user's cache directory)")
    group.add_argument(
        "--debian-mirror", metavar="URL", help="the mirror to fetch packages from (default: that of this machine's apt)"
    )
    group.add_argument("--offline", action="store_true", default=None, help="fail rather than use the network")
    areas = parser.add_subparsers(title="areas", required=True, metavar="AREA")
    for area in (doctor, boot, images, builds, templates, defects, sheet, compare, coverage, explore, timeline, bisect):
        area.add(areas, common)
    shell.add(areas, make_parser)
    return parser
