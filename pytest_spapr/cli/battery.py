"""What the commands have in common that play the battery: their options, and the cells that they play it on."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from pytest_spapr import config
from pytest_spapr.cells import Cell, make_cells
from pytest_spapr.cli.run import Run
from pytest_spapr.config import Settings
from pytest_spapr.images.recipe import DEFAULT_IMAGE
from pytest_spapr.supply import check_named


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that say which scenarios are played, and how."""
    parser.add_argument(
        "--scenario",
        action="append",
        default=[],
        metavar="NAME",
        help="only this scenario, or those of a kind of device (core, dimm, pci, phb, nvdimm); may be repeated",
    )
    parser.add_argument(
        "--contract", metavar="FILE", help="contract rows of your own, as --spapr-contract names them (default: SPAPR_CONTRACT)"
    )
    parser.add_argument("--accel", choices=("tcg", "kvm", "auto"), help="accelerator (default: SPAPR_ACCEL, else auto)")
    parser.add_argument(
        "--start", choices=("clone", "boot"), help="how each machine is started (default: SPAPR_START, else clone)"
    )


def settings_of(run: Run, **given: Any) -> tuple[Settings, ...]:
    """Return the settings of each cell.

    :param given: what the command line says of builds and images. :raises ConfigError: see ``config.read_cells``.
    """
    arguments = vars(run.arguments)
    common = {name: arguments.get(name) for name in ("cache_dir", "debian_mirror", "offline", "accel", "start", "contract")}
    cells = config.read_cells({**common, **given})
    # Whoever plays the battery asks for machines: they may be fetched.
    return cells if cells[0].image.named else config.read_cells({**common, **given, "image": DEFAULT_IMAGE})


def obtain(run: Run, settings: Sequence[Settings]) -> tuple[Cell, ...]:
    """Return the cells with all that they consist of, fetched or built if need be. :raises SpaprError: something cannot be had."""
    for one in settings:
        check_named(one)
    cells = make_cells(settings)
    for cell in cells:
        cell.obtain(run.progress, image=True)
    run.progress.done()
    return cells
