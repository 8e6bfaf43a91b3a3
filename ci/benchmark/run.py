"""One run of the benchmark: rounds of measurements, what went wrong, and the JSON of it all."""

from __future__ import annotations

import json
import time
import traceback
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final, TextIO, TypeVar

from ci.benchmark import host, runs
from ci.benchmark.bars import BARS, PLUGIN_BARS, Verdict, judge
from ci.benchmark.figures import PLUGIN_MEASURES, Figures
from ci.benchmark.machines import JOBS, Job
from ci.benchmark.subject import Subject
from pytest_spapr.errors import SpaprError
from pytest_spapr.hotplug.defects import crash_defect
from pytest_spapr.progress import Progress

T = TypeVar("T")

_FORMAT: Final = 1
_PLUGIN: Final = "plugin"


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be measured. :ivar rounds: of everything but the suite. :ivar suites: rounds of the suite, 0 for none."""

    rounds: int
    suites: int

    def seconds(self, subjects: int) -> float:
        """Return what the run takes on an idle host under TCG."""
        round_seconds = subjects * sum(job.seconds for job in JOBS) + runs.PLUGIN_SECONDS
        suites = self.suites * sum(run.seconds for run in runs.SUITE_RUNS) + (runs.FIRST_RUN.seconds if self.suites else 0)
        return self.rounds * round_seconds + subjects * suites


@dataclass(kw_only=True)
class Run:
    """A run, and what is known of it so far. :ivar file: its JSON, written after each round. :ivar errors: what went wrong."""

    plan: Plan
    subjects: Sequence[Subject]
    progress: Progress
    stderr: TextIO
    file: Path
    host_facts: dict[str, Any]
    plugin: Figures = field(default_factory=lambda: Figures(PLUGIN_MEASURES))
    errors: list[dict[str, Any]] = field(default_factory=list)
    complete: bool = False
    began: float = field(default_factory=time.time)
    used: host.Used = field(default_factory=host.Used.now)

    def measure(self) -> None:
        """Do all of it. An error of one measurement is kept, and the others go on."""
        for subject in self.subjects:
            self._do("template", subject, 0, subject.make_template)
            self._leave_out(subject)
        for number in range(self.plan.rounds):
            for step in rotated(self._steps(number), number):
                step()
            self.write()
        if self.plan.suites:
            for subject in self.subjects:
                self._suite(subject, runs.FIRST_RUN, 0)
        for number in range(self.plan.suites):
            for run in rotated(runs.SUITE_RUNS, number):
                for subject in rotated(self.subjects, number):
                    self._suite(subject, run, number)
        self.complete = True

    def others_share(self) -> float:
        """Return which part of the host's CPU time others have used so far."""
        return host.others_share(self.used, host.Used.now(), self.host_facts["cpus"])

    def verdicts(self) -> list[tuple[str, Verdict]]:
        """Return what came of every bar, with whose it is."""
        found = [(subject.name, verdict) for subject in self.subjects for verdict in judge(subject.figures, BARS)]
        return found + [(_PLUGIN, verdict) for verdict in judge(self.plugin, PLUGIN_BARS)]

    def write(self) -> None:
        """Write the JSON."""
        found = {
            "format": _FORMAT,
            "package": version("pytest-spapr"),
            "complete": self.complete,
            "began": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(self.began)),
            "seconds": round(time.time() - self.began, 1),
            "rounds": self.plan.rounds,
            "suite_rounds": self.plan.suites,
            "host": {**self.host_facts, "others_cpu_share": round(self.others_share(), 3)},
            "subjects": [{**one.facts(), **one.figures.summary(), "defects_met": one.defects} for one in self.subjects],
            _PLUGIN: self.plugin.summary(),
            "bars": [_judged(whose, verdict) for whose, verdict in self.verdicts()],
            "errors": self.errors,
        }
        self.file.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")

    def _steps(self, number: int) -> list[Callable[[], None]]:
        """Return all measurements of one round: those of the same thing with several builds stand side by side."""
        steps = [
            lambda subject=subject, job=job: self._job(subject, job, number)
            for job in JOBS
            for subject in rotated(self.subjects, number)
            if not job.lacks(subject)
        ]
        return [*steps, lambda: self._plugin(number)]

    def _leave_out(self, subject: Subject) -> None:
        for job in JOBS:
            if reason := job.lacks(subject):
                subject.figures.missing[job.title] = reason

    def _job(self, subject: Subject, job: Job, number: int) -> None:
        self.progress.phase(f"round {number + 1} of {self.plan.rounds}, {subject.name}: {job.title}")
        subject.started.clear()
        values = self._do(job.title, subject, number, lambda: list(job.measure(subject)))
        subject.figures.add(number, values or ())

    def _plugin(self, number: int) -> None:
        self.progress.phase(f"round {number + 1} of {self.plan.rounds}, the plugin itself")
        values = self._do(_PLUGIN, None, number, lambda: list(runs.plugin()))
        self.plugin.add(number, values or ())

    def _suite(self, subject: Subject, run: runs.SuiteRun, number: int) -> None:
        if run.mode == "vof" and "x-vof" not in subject.build.features:
            subject.figures.missing[run.key] = "this build has no Virtual Open Firmware"
            return
        workers = f"{run.workers} worker{'s' if run.workers > 1 else ''}"
        self.progress.phase(f"suite {number + 1} of {self.plan.suites}, {subject.name}: {run.mode}, {workers}")
        seconds = self._do(run.key, subject, number, lambda: runs.suite(subject, run))
        subject.figures.add(number, () if seconds is None else [(run.key, seconds)])
        self.write()

    def _do(self, what: str, subject: Subject | None, number: int, act: Callable[[], T]) -> T | None:
        """Return what a measurement gives, None if it fails; a known defect of QEMU is no failure of ours."""
        try:
            return act()
        except (SpaprError, AssertionError, OSError) as error:
            defects = [defect.id for machine in (subject.started if subject else ()) if (defect := crash_defect(machine))]
            if subject is not None and defects:
                subject.defects[defects[0]] = subject.defects.get(defects[0], 0) + 1
                return None
            self._note(what, subject.name if subject else None, number, error)
            return None

    def _note(self, what: str, whose: str | None, number: int, error: Exception) -> None:
        self.progress.done()
        self.stderr.write("".join(traceback.format_exception_only(error)))
        said = host.without_paths(str(error))
        self.errors.append({"what": what, "subject": whose, "round": number, "error": type(error).__name__, "said": said})


def rotated(things: Iterable[T], number: int) -> list[T]:
    """Return them in another order in each round: what one leaves to the next does not hit the same one each time."""
    found = list(things)
    start = number % len(found) if found else 0
    return found[start:] + found[:start]


def _judged(whose: str, verdict: Verdict) -> dict[str, Any]:
    bar = verdict.bar
    return {
        "subject": whose,
        "bar": bar.title,
        "measure": bar.key,
        "is_ratio": bar.is_ratio,
        bar.side.replace(" ", "_"): bar.bound,
        "unit": bar.unit or "times",
        "value": verdict.value,
        "holds": verdict.holds,
    }
