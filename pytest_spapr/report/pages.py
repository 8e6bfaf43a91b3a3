"""The pages of a test's machines, among its artefacts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from pytest_spapr.report.artefacts import Launch, make, place

_TIMELINE: Final = "timeline"


def write(directory: Path, launches: Sequence[Launch], *, failed: bool) -> list[Path]:
    """Write the timeline of each machine of a test, and its page, which opens at the last attempt if the test failed; return the pages.

    Costs 20 ms for a clone's thousand records. :raises OSError: the directory cannot be written.
    """
    # Imported here: few tests fail, and this module is imported in every pytest run.
    from pytest_spapr.report.timeline.page import page
    from pytest_spapr.report.timeline.run import FILE, PAGE, Run

    written = []
    for number, launch in enumerate(launches, start=1):
        target = place(directory, number)
        make(target)
        launch.timeline.write(target / FILE, target / f"{_TIMELINE}.txt")
        run = Run(launch.timeline.since())
        (target / PAGE).write_text(page([run], focus=moment(launch) if failed else None), encoding="utf-8")
        written.append(target / PAGE)
    return written


def moment(launch: Launch) -> int | None:
    """Return the record that a failure with this machine is about: the begin of its last attempt, else its last step."""
    from pytest_spapr.timeline import Lane

    if launch.machine is not None and launch.machine.attempts:
        return launch.machine.attempts[-1].began
    return max((record.seq for record in launch.timeline.since(0, Lane.STEP)), default=None)


def link(directory: Path, number: int, seq: int | None) -> str:
    """Return the address of a machine's page, at a record."""
    from pytest_spapr.report.timeline.run import PAGE

    return (place(directory, number) / PAGE).absolute().as_uri() + ("" if seq is None else f"#r{seq}")
