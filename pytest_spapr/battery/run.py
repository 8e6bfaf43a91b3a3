"""Plays a scenario on a machine, whatever becomes of it."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace

from pytest_spapr.battery.observation import Result
from pytest_spapr.battery.scenarios import Scenario
from pytest_spapr.battery.stage import Stage
from pytest_spapr.errors import MachineDied, SpaprError
from pytest_spapr.hotplug.contract import Contract
from pytest_spapr.hotplug.defects import crash_defect
from pytest_spapr.hotplug.device import NotConfigured
from pytest_spapr.hotplug.pseries import PseriesMachine


def perform(scenario: Scenario, machines: Callable[[], AbstractContextManager[PseriesMachine]], contract: Contract) -> Result:
    """Play a scenario on a machine of its own and return what it showed, as far as it came. Costs a clone and what the scenario takes.

    What fails of the machine or in the guest is the result's trouble, not an error: another scenario may well work.

    :param machines: starts one, for the ``with`` block. :param contract: what is held against what is seen.
    """
    result = Result(scenario=scenario.name)
    try:
        with machines() as machine:
            began = time.monotonic()
            result = replace(_played(scenario, Stage(machine, contract)), seconds=round(time.monotonic() - began, 3))
    except SpaprError as error:
        # The machine did not come up; or it did not end in good order, after all was seen.
        result = replace(result, trouble=result.trouble or _trouble(error))
    return result


def _played(scenario: Scenario, stage: Stage) -> Result:
    trouble: str | None = None
    try:
        scenario.play(stage)
    except (SpaprError, NotConfigured) as error:
        trouble = _trouble(error)
    # Asked before the machine is ended, which is a death too.
    end = stage.machine.timeline.ended
    crashed = isinstance(end, MachineDied)
    defect = crash_defect(stage.machine) if crashed else None
    return Result(
        scenario=scenario.name,
        observations=tuple(stage.seen),
        trouble=_trouble(end) if end is not None else trouble,
        defect=defect.id if defect is not None else None,
        crashed=crashed,
    )


def _trouble(error: Exception) -> str:
    return f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"
