"""Make the documentation's pages that come out of the code, and the site of all pages.

Every warning of Sphinx is an error: a link that leads nowhere, a page that no other one names.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path

from sphinx.cmd.build import main as sphinx

from pytest_spapr.hotplug.drc_model import DrcClass

from . import drawings, promises, reference

_ROOT = Path(__file__).parents[2]
_PAGES = _ROOT / "docs" / "generated"


def write_pages() -> None:
    """Write what comes out of the code anew."""
    shutil.rmtree(_PAGES, ignore_errors=True)
    _PAGES.mkdir()
    pages = {
        "options.md": reference.options(),
        "marks.md": reference.marks(),
        "fixtures.md": reference.fixture_pages(),
        "command.md": reference.command(),
        "interface.md": reference.interface(),
        "events.md": promises.events(),
        "house.svg": drawings.house(_ROOT / "pytest_spapr"),
        **{f"{drc_class.lower()}.svg": drawings.connector(drc_class) for drc_class in DrcClass},
    }
    for name, text in pages.items():
        (_PAGES / name).write_text(text, encoding="utf-8")


def main() -> int:
    parser = argparse.ArgumentParser(prog="ci/docs", description=__doc__)
    parser.add_argument("--output", type=Path, default=_ROOT / "build" / "docs", help="the site (default: build/docs)")
    output: Path = parser.parse_args().output
    write_pages()
    return sphinx(["--fail-on-warning", "--keep-going", "--quiet", "-b", "html", str(_ROOT / "docs"), str(output)])


if __name__ == "__main__":
    sys.exit(main())
