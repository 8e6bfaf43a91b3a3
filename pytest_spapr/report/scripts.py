"""What was done to a test's machines, as programs that do it again."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from pytest_spapr.errors import MachineDied, SpaprError
from pytest_spapr.record.scenario import Scenario, Unrecordable, recorded
from pytest_spapr.record.script import script
from pytest_spapr.report.artefacts import Launch, make, place
from pytest_spapr.timeline import Lane

FILE: Final = "scenario.py"
_BY_THE_TEST: Final = "was ended by the test"


def write(directory: Path, launches: Sequence[Launch], test: str) -> tuple[list[str], list[str]]:
    """Write a script for each machine of a test, before the machines end; return the files, and why there is no script of the others.

    Asks QEMU which devices are there. :param test: its name, for people. :raises OSError: the directory cannot be written.
    """
    written, reasons = [], []
    for number, launch in enumerate(launches, start=1):
        try:
            scenario = _scenario(launch)
            story = f"What {test} did to machine {number}: {launch.build.version_text}, {launch.spec.accelerator}."
            text = script(scenario, story, FILE, launch.build, launch.spec, launch.image)
        except SpaprError as error:
            reasons.append(str(error))
            continue
        path = place(directory, number) / FILE
        make(path.parent)
        path.write_text(text, encoding="utf-8")
        path.chmod(0o755)
        written.append(str(path))
    return written, reasons


def _scenario(launch: Launch) -> Scenario:
    """Return what was done to a machine. :raises SpaprError: it cannot be done again by a script, or QEMU does not answer."""
    machine, timeline = launch.machine, launch.timeline
    if machine is None:
        raise Unrecordable("the machine did not start")
    end, dead = timeline.now, timeline.ended
    left = [] if dead else [child["name"] for child in machine.qmp.execute("qom-list", {"path": "/machine/peripheral"})]
    records = timeline.since(launch.began)
    if dead and _BY_THE_TEST in str(dead) and not any(one.text.startswith("-> quit") for one in records if one.lane is Lane.QMP):
        raise Unrecordable("the test killed QEMU")
    names = [name for name in left if name != "type"]
    status = dead.exit_status if isinstance(dead, MachineDied) else None
    return recorded(records, boots=launch.booted, left=names, ended=end, dies=dead is not None, status=status)
