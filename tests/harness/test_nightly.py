"""The nightly through a real Avocado, with a real QEMU: what its results say, and that a task that is ended leaves nothing behind."""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from xml.etree import ElementTree

import pytest

from ci.night.job import ROOT
from pytest_spapr.avocado.kept import sweep
from pytest_spapr.cells import Cell

from .nights import ENDS, Place, parent_of, placed
from .telling import awaited, started

_SECONDS = 90.0
_WAITS = """
import os
from pathlib import Path
from pytest_spapr.deadline import Deadline

def test_that_waits(launch_machine):
    machine = launch_machine(image=None)
    Path({told!r}).write_text(f"{{os.getpid()}} {{machine.process.pid}}")
    machine.timeline.wait(lambda record: None, since=0, deadline=Deadline(600), what="nothing")
"""


@pytest.fixture
def place(one_cell: Cell, tmp_path: Path) -> Iterator[Place]:
    with placed(one_cell, tmp_path) as made:
        yield made


def test_each_task_is_reported_as_what_it_was(place: Place) -> None:
    for name, source in ENDS.items():
        (place.path / f"test_{name}.py").write_text(source)
    done = place.run(place.matrix(*(f"test_{name}.py" for name in ENDS)))
    assert done.returncode == 1, done.stdout + done.stderr
    night = place.night()
    assert {task.name.rpartition("test_")[2].partition(".py;")[0]: task.status for task in night.tasks} == {
        "passes": "PASS",
        "fails": "FAIL",
        "skips": "SKIP",
        "has_an_error": "ERROR",
        "fails_as_expected": "WARN",
    }
    assert night.sum("states") == {"passed": 1, "failed": 1, "skipped": 1, "error": 1, "xfailed": 1}
    root = ElementTree.parse(place.path / "r" / "latest" / "junit.xml").getroot()
    assert sorted(child.tag for child in root.iter() if child.tag in ("failure", "error", "skipped")) == [
        "error",
        "failure",
        "skipped",
        "skipped",
    ]
    assert "NOT GREEN" in done.stdout
    # One build for five tasks.
    supplies = [path for path in (place.path / "r" / "latest" / "dependencies").iterdir() if (path / "stdout").exists()]
    assert len(supplies) == 1
    failed = next(task for task in night.tasks if task.status == "FAIL")
    assert list(failed.directory.glob("artefacts/*/timeline.txt"))
    assert place.left() == []


def test_what_was_not_fine_is_run_again_and_nothing_else(place: Place) -> None:
    good, bad = place.path / "test_good.py", place.path / "test_bad.py"
    good.write_text(ENDS["passes"])
    bad.write_text("def test_it(): assert False")
    file = place.matrix("test_good.py", "test_bad.py")
    first = place.run(file)
    assert (first.returncode, "no green night before this one" in first.stdout) == (1, True), first.stdout + first.stderr
    bad.write_text("def test_it(): pass")
    replay = place.run(file, "--replay")
    assert replay.returncode == 0, replay.stdout + replay.stderr
    assert [Path(task.name.partition(";")[0]).name for task in place.night().tasks] == ["test_bad.py"]
    assert place.run(file).returncode == 0
    good.write_text("def test_it(): assert False")
    third = place.run(file)
    assert third.returncode == 1
    changes = [line for line in third.stdout.splitlines() if line[:1] in "+-" and "test_" in line]
    assert [(line[0], line.rpartition(" ")[2]) for line in changes] == [("-", "PASS"), ("+", "FAIL")]
    assert all("test_good.py" in line for line in changes)
    page = (place.path / "r" / "trend-m.html").read_text()
    assert page.count("<tr class") == 3


def test_a_name_may_have_tests_of_its_own(place: Place) -> None:
    for name in ("all", "one"):
        (place.path / f"test_{name}.py").write_text("def test_it(): pass")
    file = place.matrix("test_all.py")
    with file.open("a") as stream:
        stream.write(f"mode: !mux\n  plain:\n    cpu: power9\n  own:\n    cpu: power8\n    tests: [{place.path}/test_one.py]\n")
    done = place.run(file)
    assert done.returncode == 0, done.stdout + done.stderr
    found = {tuple(Path(part).name for part in task.name.split(";")) for task in place.night().tasks}
    ran = sorted((module, "own" in variant) for module, variant in found)
    assert ran == [("test_all.py", False), ("test_all.py", True), ("test_one.py", True)]


def test_a_cell_whose_build_cannot_be_had_is_not_run(place: Place) -> None:
    (place.path / "test_it.py").write_text(ENDS["passes"])
    done = place.run(place.matrix("test_it.py", qemu="no-such-build"))
    assert done.returncode == 1
    assert place.night().statuses() == {"NOT RUN": 1}
    assert "no packaged build has this name" in done.stdout


class TestTasksThatAreEnded:
    """Each has a pytest whose test waits for a machine."""

    @pytest.fixture
    def file(self, place: Place) -> Path:
        return place.waiting(_WAITS)

    @pytest.fixture
    def pids(self, place: Place) -> Callable[[subprocess.Popen[str]], dict[str, int]]:
        def wait(nightly: subprocess.Popen[str]) -> dict[str, int]:
            """Wait until the machine runs; return who it hangs on."""
            suite, qemu = map(int, awaited(place.path / "told", nightly).split())
            keeper = parent_of(suite)
            runner = parent_of(keeper)
            found = {"qemu": qemu, "pytest": suite, "keeper": keeper, "runner": runner, "avocado": parent_of(runner)}
            place.watched += map(os.pidfd_open, found.values())
            return found

        return wait

    @pytest.mark.parametrize(
        ("who", "number", "status", "reason"),
        [
            ("runner", signal.SIGTERM, "ERROR", "the task's runner ended with status 143"),
            ("runner", signal.SIGKILL, "ERROR", "the task's runner was killed by SIGKILL"),
            ("keeper", signal.SIGKILL, "ERROR", "the process that kept the command was killed"),
            ("pytest", signal.SIGKILL, "ERROR", "pytest was killed by SIGKILL"),
            ("pytest", signal.SIGTERM, "ERROR", "pytest ended with status 143"),
            ("nightly", signal.SIGTERM, "INTERRUPTED", "Test interrupted: Interrupted by user"),
            ("nightly", signal.SIGINT, "INTERRUPTED", "Test interrupted: Interrupted by user"),
        ],
    )
    def test_a_task_that_is_ended_leaves_nothing_and_is_told(
        self,
        place: Place,
        file: Path,
        pids: Callable[[subprocess.Popen[str]], dict[str, int]],
        who: str,
        number: signal.Signals,
        status: str,
        reason: str,
    ) -> None:
        task, ended, said = place.outcome(
            place.command(file), lambda nightly: os.kill({**pids(nightly), "nightly": nightly.pid}[who], number)
        )
        assert task.status == status, said
        assert reason in task.reason
        assert ended == (130 if who == "nightly" else 1)

    @pytest.mark.parametrize("who", ["nightly", "avocado"])
    def test_a_nightly_that_is_killed_leaves_nothing(
        self,
        place: Place,
        file: Path,
        pids: Callable[[subprocess.Popen[str]], dict[str, int]],
        monkeypatch: pytest.MonkeyPatch,
        who: str,
    ) -> None:
        with started(place.command(file), ROOT, place.env()) as nightly:
            os.kill({**pids(nightly), "nightly": nightly.pid}[who], signal.SIGKILL)
            nightly.communicate(timeout=_SECONDS)
        assert place.all_ended()
        # What is Avocado's own goes with the nightly, or where that was killed with the next one.
        assert all(name.startswith(f"spapr-night-{nightly.pid}-") for name in place.left())
        monkeypatch.setattr(tempfile, "tempdir", str(place.temporary))
        sweep()
        assert place.left() == []

    def test_a_task_that_takes_too_long_is_given_up(
        self, place: Place, file: Path, pids: Callable[[subprocess.Popen[str]], dict[str, int]]
    ) -> None:
        began = time.monotonic()
        task, _, said = place.outcome(place.for_a_while(file, "test_waits.py", seconds=20), pids)
        assert (task.status, task.reason) == ("INTERRUPTED", "Test interrupted: Timeout reached"), said
        assert time.monotonic() - began > 20
