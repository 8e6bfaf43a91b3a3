"""``python -m ci.pages RUN DIRECTORY``: pictures of the pages that a run with two QEMU builds left, for the documentation."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ci.pages.browser import NoBrowser, chromium
from pytest_spapr.errors import SpaprError
from pytest_spapr.report.timeline.divergence import diverge
from pytest_spapr.report.timeline.page import page
from pytest_spapr.report.timeline.run import FILE, Run, read
from pytest_spapr.report.timeline.svg import picture

_WIDE, _NARROW = {"width": 1280, "height": 900}, {"width": 390, "height": 844}


def main(arguments: list[str]) -> int:
    if len(arguments) != 2:
        sys.stderr.write(f"usage: {__doc__}\n")
        return 2
    run, directory = (Path(one).absolute() for one in arguments)
    try:
        runs = sorted((read(file) for file in run.glob(f"*/{FILE}")), key=lambda one: one.about.get("qemu", ""))
        if len(runs) != 2:
            raise NoBrowser(f"{run} has {len(runs)} timelines, expected those of one test on two builds")
        directory.mkdir(parents=True, exist_ok=True)
        draw(runs, directory)
    except (NoBrowser, SpaprError) as error:
        sys.stderr.write(f"{error}\n")
        return 2
    return 0


def draw(runs: list[Run], directory: Path) -> None:
    """Write the pictures."""
    # The newer QEMU's sorts first: 11 before 5.
    newer, older = (Run(one.records, one.about["qemu"].split(" (")[0]) for one in runs)
    first = next(record for record in newer.records if record.text.startswith("unplug"))
    end = next(record for record in newer.records if record.text.startswith("verdict"))
    svg = picture(newer, newer.records[newer.begin].time, end.time + 0.05)
    (directory / "refused-core.svg").write_text(svg, encoding="utf-8")
    one, two = directory / "one.html", directory / "two.html"
    one.write_text(page([newer], focus=first.seq), encoding="utf-8")
    two.write_text(page([older, newer], divergence=diverge(older, newer)), encoding="utf-8")
    with chromium() as browser:
        for file, name, viewport, scheme in (
            (one, "timeline.png", _WIDE, "light"),
            (one, "timeline-narrow.png", _NARROW, "light"),
            (two, "two-builds.png", {"width": 1280, "height": 1200}, "light"),
        ):
            shoot(browser, file, directory / name, viewport, scheme)
    one.unlink()
    two.unlink()


def shoot(browser: Any, file: Path, picture_file: Path, viewport: Mapping[str, int], scheme: str) -> None:
    """Write a picture of a page."""
    with browser.new_context(viewport=viewport, color_scheme=scheme, offline=True) as context:
        shown = context.new_page()
        shown.goto(file.as_uri())
        shown.locator("html[data-ready]").wait_for()
        shown.screenshot(path=picture_file)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
