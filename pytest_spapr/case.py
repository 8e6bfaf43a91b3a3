"""One test and its machines: what they were, how they end, what is reported about them."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pytest_spapr.errors import DeadlineExpired, MachineDied, SpaprError
from pytest_spapr.live import ways_in
from pytest_spapr.markers import defect_reason, defects
from pytest_spapr.printable import printable
from pytest_spapr.report import artefacts, junit, pages, summary
from pytest_spapr.report.artefacts import Launch
from pytest_spapr.rig import RIG

if TYPE_CHECKING:
    from pytest_spapr.hotplug.attempt import Attempt
    from pytest_spapr.hotplug.defects import KnownDefect
    from pytest_spapr.hotplug.expectation import Expectation
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
        self._timeline = rig.settings.timeline.value
        self._pages: list[Path] = []
        self._records = rig.settings.record.value
        self._scripts: tuple[list[str], list[str]] = ([], [])
        self._explained: dict[int, list[str]] = {}
        self._directory = artefacts.directory_for(rig.run_directory, item.nodeid)
        self._artefacts: Path | None = None
        self._defects: list[str] = []
        self._kept: list[str] = []

    def finish(self) -> None:
        """End the machines, last one first, or let go of them where they are to be kept.

        :raises ExceptionGroup: all that went wrong.
        """
        errors: list[Exception] = []
        acts: list[Callable[[], None]] = [self._save_if_interrupted, self._write_scripts]
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
            self._write_pages(failed=True)
            self._summary.add_artefacts(str(self._directory))

    def _write_scripts(self) -> None:
        if self._records:
            # Few runs want it.
            from pytest_spapr.report import scripts

            self._scripts = scripts.write(self._directory, self.launches, self._item.nodeid)

    @property
    def _reported(self) -> bool:
        """Whether pytest will report about what the test did; an interrupted one gets no report."""
        return bool(self._outcomes) and self._outcomes != {"setup": "passed"}

    def step(self, text: str) -> None:
        """Write a step on every machine's timeline."""
        for launch in self.launches:
            launch.timeline.step(text)

    def ways_in(self) -> Iterator[str]:
        """Yield how a person reaches the test's machines that live now."""
        for number, launch in enumerate(self.launches, start=1):
            if launch.machine is not None and launch.timeline.ended is None:
                yield f"spapr: machine {number}: {'; '.join(ways_in(launch.machine))}"

    def report(self, call: pytest.CallInfo[None], report: pytest.TestReport) -> None:
        """Complete one phase's report. Never raises: what goes wrong here is told in the report."""
        try:
            self._report(call, report)
        except OSError as error:
            # Most often a full disk: where it is says more than how we came there.
            report.sections.append(("spapr: could not report about the machines", f"{self._directory}: {error}"))
        except Exception:  # noqa: BLE001 - an error here would end the whole run as INTERNALERROR and hide the test's own
            report.sections.append(("spapr: could not report about the machines", traceback.format_exc()))

    def _report(self, call: pytest.CallInfo[None], report: pytest.TestReport) -> None:
        self._outcomes[str(report.when)] = report.outcome
        if report.failed:
            if defect := self._defect(call):
                report.outcome = "skipped"
                report.wasxfail = defect_reason(defect)  # pytest's own way to say xfailed
                self._defects.append(defect.id)
            self._save(report, call)
        elif report.skipped and getattr(report, "wasxfail", "").startswith("known defect"):
            self._defects.extend(defect.id for defect in defects(self._item))
        if report.when == "teardown":
            if self._timeline == "on" or self._pages:
                # Again, where it failed: with the machines' end.
                self._write_pages(failed=self._artefacts is not None)
            facts = summary.facts(self.launches)
            facts["cell"] = self._cell.id if self._cell else ""
            facts["defects"] = self._defects
            facts["artefacts"] = None if self._artefacts is None else str(self._artefacts)
            facts["pages"] = [str(page) for page in self._pages]
            facts["kept"] = self._kept
            facts["scripts"], facts["unrecorded"] = self._scripts
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

    def _save(self, report: pytest.TestReport, call: pytest.CallInfo[None]) -> None:
        shown = [artefacts.excerpt(launch) for launch in self.launches]
        self.step(f"failed: {_first_line(call)}")
        lost = self._save_files()
        report.sections.extend(self._last_attempts(report.longreprtext))
        for number, (launch, text) in enumerate(zip(self.launches, shown, strict=True), start=1):
            title = "spapr timeline" + (f" of machine {number}" if len(shown) > 1 else "")
            page = "" if self._timeline == "off" else f"\nAs a page: {pages.link(self._directory, number, pages.moment(launch))}"
            report.sections.append((title, f"{text}\n{lost or f'The whole of it, and more: {self._directory}{page}'}"))
        if not lost:
            # Last: what goes wrong with it hides nothing.
            self._write_pages(failed=True)

    def _save_files(self) -> str | None:
        """Save the files of the test's machines; return in a sentence why that cannot be, where it cannot."""
        try:
            artefacts.save(self._directory, self.launches)
        except OSError as error:
            return (
                f"The files of this test could not be saved in {self._directory}: {error.strerror or error}. What is there is not whole.\n"
                "Make room, or name another directory: --spapr-artefacts=DIR"
            )
        self._artefacts = self._directory
        return None

    def _write_pages(self, *, failed: bool) -> None:
        if self._timeline != "off":
            self._pages = pages.write(self._directory, self.launches, failed=failed)

    def explain(self, attempt: Attempt, expectation: Expectation | None) -> list[str]:
        """Return the lines that tell why an attempt of this test is not what was expected, and where to see more."""
        # Few tests fail, and this module is imported in every pytest run.
        from pytest_spapr.report.failure import Scene, explain

        for number, launch in enumerate(self.launches, start=1):
            if launch.machine is not None and attempt in launch.machine.attempts:
                where = str(self._directory) if self._timeline == "off" else pages.link(self._directory, number, attempt.began)
                scene = Scene(launch.timeline.since(), launch.build.features, [where])
                lines = self._explained[id(attempt)] = explain(attempt, expectation, scene)
                return lines
        return explain(attempt, expectation)

    def _last_attempts(self, told: str) -> Iterator[tuple[str, str]]:
        """Yield what there is to say of each machine's last attempt and was not told: no assertion was about it, or pytest cut it off."""
        for machine in filter(None, (launch.machine for launch in self.launches)):
            for attempt in machine.attempts[-1:]:
                lines = self._explained.get(id(attempt)) or self.explain(attempt, None)
                if lines[-1] not in told:
                    yield "spapr: the last attempt", "\n".join(lines)


def _first_line(call: pytest.CallInfo[None]) -> str:
    told = "" if call.excinfo is None else call.excinfo.exconly(tryshort=True)
    return printable(next(iter(told.splitlines()), ""))


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
    return "\n  ".join([nodeid, *ways_in(machine), f"end it: kill {machine.process.pid}"])
