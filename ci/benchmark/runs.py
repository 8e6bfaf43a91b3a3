"""What is measured of whole runs of pytest: the suite, its collection, and what the plugin costs tests that need no machine."""

from __future__ import annotations

import itertools
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ci.benchmark.figures import WORKERS
from ci.benchmark.subject import NotMeasured, Subject, WrongOutcome

ROOT: Final = Path(__file__).resolve().parents[2]
_SUITE: Final = "tests/hotplug"
_TESTS: Final = 1000
_REPEATS: Final = 3
_LINES: Final = 30
_END_SECONDS: Final = 60.0
_COUNT: Final = re.compile(r"(?P<count>\d+) (?P<word>passed|failed|errors?|skipped|xfailed|xpassed)\b")
_COLLECTED: Final = re.compile(r"^(?P<count>\d+) tests? collected", re.MULTILINE)
_EMPTY_TESTS: Final = """\
import pytest

@pytest.mark.parametrize("number", range({count}))
def test_nothing(number):
    pass
"""


@dataclass(frozen=True, slots=True)
class SuiteRun:
    """A way to run the suite. :ivar mode: as in the measures' names. :ivar seconds: under TCG, on an idle host with two CPUs."""

    mode: str
    workers: int
    options: tuple[str, ...]
    seconds: float

    @property
    def key(self) -> str:
        return f"suite_{self.mode}_{self.workers}"


_MODES: Final = (
    ("clone", ("--spapr-start=clone",), (240, 130)),
    ("vof", ("--spapr-start=boot", "--spapr-firmware=vof"), (560, 320)),
    ("slof", ("--spapr-start=boot", "--spapr-firmware=slof"), (1200, 650)),
)

#: Every way to run the suite.
SUITE_RUNS: Final = tuple(
    SuiteRun(mode, workers, options, seconds[index]) for mode, options, seconds in _MODES for index, workers in enumerate(WORKERS)
)
#: The run before them: it makes the templates that there are none of yet, which the others then find.
FIRST_RUN: Final = SuiteRun("first", WORKERS[-1], ("--spapr-start=clone",), 160)
#: Seconds that the measurements of the plugin take in each round.
PLUGIN_SECONDS: Final = 8.0


def suite(subject: Subject, run: SuiteRun) -> float:
    """Run the suite and return its wall time.

    :raises WrongOutcome: not every test passed or was a known defect, or there were others than in the runs before.
    :raises NotMeasured: tests were skipped for want of something.
    """
    settings = subject.settings
    options = [_SUITE, "--quiet", *run.options, f"--spapr-cache-dir={settings.cache_dir.value}"]
    options += [
        f"--spapr-{name}={value}" for name, value in (("qemu", settings.qemu.value), ("image", settings.image.value)) if value
    ]
    options += ["--spapr-offline"] if settings.offline.value else []
    options += ["-n", str(run.workers), "--dist", "worksteal"] if run.workers > 1 else []
    seconds, output = pytest(options, ROOT)
    found = counts(output)
    tests = subject.figures.notes.setdefault("suite_tests", {})
    before = next((one for of_way in tests.values() for one in of_way), found)
    tests.setdefault(run.key, []).append(found)
    if found.get("skipped"):
        raise NotMeasured(f"{found['skipped']} tests of the suite were skipped: another amount of work than in other runs")
    if sum(found.values()) != sum(before.values()):
        raise WrongOutcome(
            f"the suite has {sum(found.values())} tests, and had {sum(before.values())} before: it was changed meanwhile"
        )
    return seconds


def plugin() -> Iterator[tuple[str, float]]:
    """Measure the plugin: for each test that needs no machine, for each run, and the collection of the suite.

    Runs of many tests and of one, with the plugin and without, tell what is each test's and what is the run's. The shortest of
    several alike counts: what others do to this host can only make them longer.
    """
    seconds: dict[tuple[bool, int], float] = {}
    with tempfile.TemporaryDirectory(prefix="spapr-bench-") as name:
        directory = Path(name)
        for count in (1, _TESTS + 1):
            (directory / f"test_{count}.py").write_text(_EMPTY_TESTS.format(count=count), encoding="utf-8")
        (directory / "pytest.ini").write_text("[pytest]\n", encoding="utf-8")
        for present, count in _REPEATS * list(itertools.product((True, False), (1, _TESTS + 1))):
            options = [f"test_{count}.py", "--quiet", "-p", "no:cacheprovider", *([] if present else ["-p", "no:spapr"])]
            took, output = pytest(options, directory)
            if counts(output) != {"passed": count}:
                raise WrongOutcome(f"{count} empty tests: {counts(output)}")
            seconds[present, count] = min(took, seconds.get((present, count), took))
    more, few = (seconds[True, count] - seconds[False, count] for count in (_TESTS + 1, 1))
    yield "empty_test", (more - few) / _TESTS * 1000
    yield "plugin_start", few * 1000
    collected, output = pytest([_SUITE, "--collect-only", "--quiet", "-p", "no:cacheprovider"], ROOT)
    if not (match := _COLLECTED.search(output)) or int(match["count"]) == 0:
        raise WrongOutcome("the suite's collection found no tests")
    yield "collect", collected


def pytest(options: Sequence[str], directory: Path) -> tuple[float, str]:
    """Run pytest in a process of its own; return the wall time and its output.

    Whatever ends this wait ends that run in good order first, so that it leaves no machines.

    :raises WrongOutcome: its exit status is not 0; its last lines go to stderr.
    """
    environment = {name: value for name, value in os.environ.items() if name != "PYTEST_ADDOPTS"}
    began = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-m", "pytest", *options],
        cwd=directory,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="backslashreplace",
        # A terminal's Ctrl-C is passed on once, below.
        start_new_session=True,
    )
    try:
        output, _ = process.communicate()
    except BaseException:
        _end(process)
        raise
    seconds = time.monotonic() - began
    if process.returncode != 0:
        sys.stderr.write("\n".join(output.splitlines()[-_LINES:]) + "\n")
        raise WrongOutcome(f"pytest {' '.join(_told(options))} ended with status {process.returncode}: {last_line(output)}")
    return seconds, output


def counts(output: str) -> dict[str, int]:
    """Return how many tests had which result, from pytest's last line with numbers."""
    for line in reversed(output.splitlines()):
        if found := {match["word"]: int(match["count"]) for match in _COUNT.finditer(line)}:
            return found
    return {}


def last_line(output: str) -> str:
    """Return pytest's last words."""
    return next((line.strip("= ") for line in reversed(output.splitlines()) if line.strip("= ")), "no output")


def _told(options: Iterable[str]) -> list[str]:
    return [option for option in options if not option.startswith("--spapr-cache-dir")]


def _end(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGTERM)
    try:
        process.communicate(timeout=_END_SECONDS)
    except BaseException:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        raise
