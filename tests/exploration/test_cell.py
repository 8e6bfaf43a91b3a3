"""``spapr explore`` for a while, in the cell of this run: what the nightly does in each of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Final

import pytest

from pytest_spapr import GuestImage, QemuBuild
from pytest_spapr.cells import Cell
from pytest_spapr.rig import RIG

#: For the exploration itself; what it finds is made small after that.
MINUTES: Final = 2
#: Seconds for making one violation small.
SHRINK: Final = 60
_SPAPR: Final = "import sys; from pytest_spapr.cli import main; sys.exit(main())"
#: What a cell is, of a run's options. The build and the image are asked for first: a cell that lacks them is skipped.
_CELL: Final = ("qemu", "image", "accel", "machine", "cpu", "kernel_args", "firmware", "contract", "cache_dir")


@pytest.mark.parametrize("guest", [True, False], ids=["with a guest", "without one"])
def test_an_exploration_of_this_cell_finds_nothing_new(
    request: pytest.FixtureRequest, spapr_cell: Cell, qemu_build: QemuBuild, guest_image: GuestImage, *, guest: bool
) -> None:
    """Other histories each time; the seed is in what is said, should it fail."""
    given = {name: getattr(spapr_cell.settings, name).value for name in _CELL}
    if not guest:
        del given["image"]
    said = {f"SPAPR_{name.upper()}": str(value) for name, value in given.items() if value is not None}
    # One process: the nightly runs as many cells at once as there are CPUs.
    options = [f"--minutes={MINUTES}", f"--shrink={SHRINK}", "--workers=1", *([] if guest else ["--no-guest", "--guided"])]
    output = request.config.stash[RIG].run_directory / "explored"
    command = [sys.executable, "-c", _SPAPR, "explore", *options, f"--output={output}"]
    inherited = {name: value for name, value in os.environ.items() if name not in ("SPAPR_QEMU", "SPAPR_IMAGE")}
    done = subprocess.run(command, env=inherited | said, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{qemu_build.version_text}, {guest_image.name}:\n{done.stderr}\n{done.stdout}"
