"""A program of its own: ``python -m pytest_spapr.avocado.obtain qemu=7.2`` gets what a cell needs, as a test run would.

Exit status 0, or 2 with one clear message on stderr.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Final

from pytest_spapr import config
from pytest_spapr.cells import make_cells
from pytest_spapr.errors import SpaprError
from pytest_spapr.progress import finished, progress_for
from pytest_spapr.supply import check_named, check_recipe

#: What the last line begins with where something cannot be had.
CANNOT: Final = "cannot be had: "


def main(argv: Sequence[str]) -> int:
    """Get a QEMU build, a guest image or both, named by settings as ``name=value``; return the exit status."""
    given = dict(word.split("=", 1) for word in argv)
    try:
        settings = config.read(given)
        check_named(settings)
        check_recipe(settings)
        (cell,) = make_cells([settings])
        with finished(progress_for(sys.stderr)) as progress:
            if "qemu" in given:
                sys.stderr.write(f"{cell.build(progress).version_text}\n")
            if "image" in given or "kernel" in given:
                sys.stderr.write(f"{cell.image(progress).name}, Linux {cell.image().kernel_release}\n")
    except SpaprError as error:
        sys.stderr.write(f"{CANNOT}{' '.join(str(error).split())}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
