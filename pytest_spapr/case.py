"""One test and its machines: what they were, how they end, what is reported about them."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pytest_spapr.errors import DeadlineExpired, MachineDied, SpaprError
from pytest_spapr.markers import defect_reason, defects
from pytest_spapr.report import artefacts, junit, summary
from pytest_spapr.report.artefacts import Launch
from pytest_spapr.rig import RIG

if TYPE_CHECKING:
    from pytest_spapr.hotplug.defects import KnownDefect
    from pytest_spapr.hotplug.pseries import PseriesMachine


class Case:
    """One per test that starts machines, in ``item.stash[CASE]``.

    :ivar launches: every machine of the test, in order.
    """

    def __init__(self, item: pytest.Item) -> None:
        rig = item.config.stash[RIG]
        self.launches: list[Launch] = []
        self._item = item
        self._cell = rig.cell(item)
        self._summary = rig.summary
        self._outcomes: dict[str, str] = {}
        self._keep = rig.settings.keep.value
        self._directory = artefacts.directory_for(rig.run_directory, item.nodeid)
        self._artefacts: Path | None = None
        self._defects: list[str] = []
        self._kept: list[str] = []

    def finish(self) -> None:
        """End the machines, last one first, or let go of them where they are to be kept.

        :raises ExceptionGroup: all that went wrong.
        """
        errors: list[Exception] = []
        acts: list[Callable[[], None]] = [self._save_if_interrupted]
        acts.extend(partial(self._end, launch) for launch in reversed(self.launches))
        for act in acts:
            try:
                act()
            except (SpaprError, OSError) as error:
                errors.append(error)
        if errors:
            raise ExceptionGroup("ending the test's machines", errors)

    def _end(self, launch: Launch) -> None:
        try:
            self._end_machine(launch)
        finally:
            if launch.lease is not None:
                launch.lease.release()

    def _end_machine(self, launch: Launch) -> None:
        keep = self._keep == "always" or (self._keep == "failed" and "failed" in self._outcomes.values())
        if launch.machine is None:
            return
        if keep and launch.timeline.ended is None:
            self._kept.append(_how_to_reach(self._item.nodeid, launch.machine))
            # Now, not by the report: an interrupted run makes no more reports.
            self._summary.add_kept(self._kept)
            if not self._reported:
                artefacts.note_kept(self._directory, self._kept)
            launch.machine.release()
        else:
            launch.machine.close()

    def _save_if_interrupted(self) -> None:
        """Save what a test did that Ctrl-C or SIGTERM ended: pytest makes no report about it, and it may be one that hangs."""
        if not self._reported:
            artefacts.save(self._directory, self.launches)
            self._summary.add_artefacts(str(self._directory))

    @property
    def _reported(self) -> bool:
        """Whether pytest will report about what the test did; an interrupted one gets no report."""
        return bool(self._outcomes) and self._outcomes != {"setup": "passed"}

    def step(self, text: str) -> None:
        """Write a step on every machine's timeline."""
        for launch in self.launches:
            launch.timeline.step(text)

    def report(self, call: pytest.CallInfo[None], report: pytest.TestReport) -> None:
        """Complete one phase's report. Never raises: what goes wrong here is told in the report."""
        try:
            self._report(call, report)
        except Exception:  # noqa: BLE001 - an error here would end the whole run as INTERNALERROR and hide the test's own
            report.sections.append(("spapr: could not report about the machines", traceback.format_exc()))

    def _report(self, call: pytest.CallInfo[None], report: pytest.TestReport) -> None:
        self._outcomes[str(report.when)] = report.outcome
        if report.failed:
            if defect := self._defect(call):
                report.outcome = "skipped"
                report.wasxfail = defect_reason(defect)  # pytest's own way to say xfailed
                self._defects.append(defect.id)
            self._save(report)
        elif report.skipped and getattr(report, "wasxfail", "").startswith("known defect"):
            self._defects.extend(defect.id for defect in defects(self._item))
        if report.when == "teardown":
            facts = summary.facts(self.launches)
            facts["cell"] = self._cell.id if self._cell else ""
            facts["defects"] = self._defects
            facts["artefacts"] = None if self._artefacts is None else str(self._artefacts)
            facts["kept"] = self._kept
            report.user_properties.extend(junit.properties(facts))
            report.spapr = facts  # type: ignore[attr-defined]  # extra attributes travel with the report, see Summary

    def _defect(self, call: pytest.CallInfo[None]) -> KnownDefect | None:
        """Return the known defect that made this phase fail: it killed QEMU, or silenced its monitor."""
        if call.excinfo is None or self._item.config.getoption("runxfail"):
            return None
        from pytest_spapr.hotplug.defects import crash_defect, hang_defect

        errors = list(_chain(call.excinfo.value))
        died = any(isinstance(error, MachineDied) for error in errors)
        waited = any(isinstance(error, DeadlineExpired) for error in errors)
        for machine in filter(None, (launch.machine for launch in self.launches)):
            if died or any(str(attempt.outcome) == "crashed" for attempt in machine.attempts):
                defect = crash_defect(machine)
            else:
                defect = hang_defect(machine) if waited else None
            if defect is not None:
                return defect
        return None

    def _save(self, report: pytest.TestReport) -> None:
        shown = [artefacts.excerpt(launch) for launch in self.launches]
        artefacts.save(self._directory, self.launches)
        self._artefacts = self._directory
        for number, text in enumerate(shown, start=1):
            title = "spapr timeline" + (f" of machine {number}" if len(shown) > 1 else "")
            report.sections.append((title, f"{text}\nThe whole of it, and more: {self._directory}"))


CASE = pytest.StashKey[Case]()


def case_of(item: pytest.Item) -> Case:
    """Return the test's case, made at the first call."""
    if CASE not in item.stash:
        item.stash[CASE] = Case(item)
    return item.stash[CASE]


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        if isinstance(error, BaseExceptionGroup):
            for inner in error.exceptions:
                yield from _chain(inner)
        error = error.__cause__ or error.__context__


def _how_to_reach(nodeid: str, machine: PseriesMachine) -> str:
    login = f"log in: {machine.guest.ssh_command()}" if machine.has_guest else "it has no guest to log in to"
    return f"{nodeid}\n  {login}\n  end it: kill {machine.process.pid}"
