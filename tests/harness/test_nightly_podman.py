"""The nightly with its tasks in containers, through a real podman: as outside ones, and nothing is left of a container either."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from pytest_spapr.cells import Cell
from pytest_spapr.deadline import Deadline

from .nights import ENDS, Place, parent_of, placed
from .telling import awaited

#: What ci/container-image makes.
_IMAGE = "pytest-spapr"
_SECONDS = 90.0
#: podman writes it in each container.
_INSIDE = "/run/.containerenv"
_IS_INSIDE = f"from pathlib import Path\n\ndef test_where_it_is(): assert Path({_INSIDE!r}).exists()\n\n"
_WAITS = f"""
import os
import re
from pathlib import Path
from pytest_spapr.deadline import Deadline

def test_that_waits(launch_machine):
    machine = launch_machine(image=None)
    runner = re.search(r"spapr-night-(\\d+)-", Path({_INSIDE!r}).read_text())[1]
    Path({{told!r}}).write_text(f"{{{{runner}}}} {{{{os.getpid()}}}} {{{{machine.process.pid}}}}")
    machine.timeline.wait(lambda record: None, since=0, deadline=Deadline(600), what="nothing")
"""


@pytest.fixture
def place(one_cell: Cell, tmp_path: Path) -> Iterator[Place]:
    if shutil.which("podman") is None:
        pytest.skip("there is no podman: install it, and make an image: ci/container-image")
    if subprocess.run(["podman", "image", "exists", _IMAGE], check=False, capture_output=True).returncode:
        pytest.skip(f"podman has no image {_IMAGE} for this user: ci/container-image makes it")
    if os.getuid() and "XDG_RUNTIME_DIR" not in os.environ:
        pytest.skip(
            "an ordinary user's podman without XDG_RUNTIME_DIR has what it keeps below TMPDIR, which this nightly has its own of"
        )
    with placed(one_cell, tmp_path) as made:
        yield made


def podman(*words: str) -> list[str]:
    return subprocess.run(["podman", *words], check=True, capture_output=True, text=True).stdout.split()


def no_container() -> bool:
    """Wait until none of a task is left."""
    deadline = Deadline(_SECONDS)
    while found := podman("ps", "--all", "--quiet", "--filter=name=^spapr-night-"):
        if deadline.expired:
            return False
        subprocess.run(["podman", "wait", *found], check=False, capture_output=True, timeout=_SECONDS)
    return True


@pytest.mark.spapr_slow
def test_each_task_is_reported_as_outside_a_container(place: Place) -> None:
    images, volumes = podman("images", "--all", "--quiet"), podman("volume", "ls", "--quiet")
    names = ("passes", "fails", "skips", "fails_as_expected")
    for name in names:
        (place.path / f"test_{name}.py").write_text(ENDS[name] if name == "skips" else _IS_INSIDE + ENDS[name])
    done = place.run(place.matrix(*(f"test_{name}.py" for name in names)), f"--podman={_IMAGE}", f"--mount={place.path}")
    assert done.returncode == 1, done.stdout + done.stderr
    night = place.night()
    assert {task.name.rpartition("test_")[2].partition(".py;")[0]: task.status for task in night.tasks} == {
        "passes": "PASS",
        "fails": "FAIL",
        "skips": "SKIP",
        "fails_as_expected": "WARN",
    }, done.stdout + done.stderr
    assert night.sum("states") == {"passed": 4, "failed": 1, "skipped": 1, "xfailed": 1}
    assert (place.path / "r" / "latest" / "junit.xml").exists()
    failed = next(task for task in night.tasks if task.status == "FAIL")
    assert list(failed.directory.glob("artefacts/*/timeline.txt"))
    assert all((task.directory / "stdout").read_text().count("test session starts") == 1 for task in night.tasks)
    assert no_container()
    assert place.left() == []
    assert (podman("images", "--all", "--quiet"), podman("volume", "ls", "--quiet")) == (images, volumes)


def test_a_qemu_of_ones_own_is_asked_where_tasks_run(one_cell: Cell, place: Place) -> None:
    mine = place.path / "mine"
    mine.mkdir()
    own = mine / "qemu-system-ppc64"
    build = one_cell.build()
    command = shlex.join(["env", *(f"{name}={value}" for name, value in build.env.items()), *build.command])
    own.write_text(f'#!/bin/sh\ntest -e {_INSIDE} && exec {command} "$@"\n')
    own.chmod(0o755)
    (mine / "test_it.py").write_text(ENDS["passes"])
    done = place.run(place.matrix("mine/test_it.py", qemu=str(own)), f"--podman={_IMAGE}", f"--mount={mine}")
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.spapr_slow
class TestTasksThatAreEnded:
    """Each has a pytest whose test waits for a machine, in a container."""

    @pytest.fixture
    def file(self, place: Place) -> Path:
        return place.waiting(_WAITS)

    @pytest.fixture
    def pids(self, place: Place) -> Callable[[subprocess.Popen[str]], dict[str, int]]:
        def wait(nightly: subprocess.Popen[str]) -> dict[str, int]:
            """Wait until the machine runs; return who it hangs on."""
            runner, suite, qemu = map(int, awaited(place.path / "told", nightly).split())
            client = _podman_of(runner)
            found = {"qemu": qemu, "pytest": suite, "keeper": parent_of(suite), "podman": client, "runner": runner}
            place.watched += map(os.pidfd_open, found.values())
            return found

        return wait

    @pytest.mark.parametrize(
        ("who", "number", "status", "reason"),
        [
            ("runner", signal.SIGKILL, "ERROR", "the task's runner was killed by SIGKILL"),
            ("podman", signal.SIGKILL, "ERROR", " before the command in its container did"),
            ("keeper", signal.SIGKILL, "ERROR", "podman ended with status 137 before the command in its container did"),
            ("pytest", signal.SIGKILL, "ERROR", "pytest was killed by SIGKILL"),
            ("nightly", signal.SIGTERM, "INTERRUPTED", "Test interrupted: Interrupted by user"),
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
        command = place.command(file, f"--podman={_IMAGE}", f"--mount={place.path}")
        task, ended, said = place.outcome(
            command, lambda nightly: os.kill({**pids(nightly), "nightly": nightly.pid}[who], number)
        )
        assert no_container()
        assert task.status == status, said
        assert reason in task.reason
        assert ended == (130 if who == "nightly" else 1)

    def test_a_task_that_takes_too_long_is_given_up(
        self, place: Place, file: Path, pids: Callable[[subprocess.Popen[str]], dict[str, int]]
    ) -> None:
        task, _, said = place.outcome(place.for_a_while(file, "test_waits.py", seconds=20, image=_IMAGE), pids)
        assert no_container()
        assert (task.status, task.reason) == ("INTERRUPTED", "Test interrupted: Timeout reached"), said


def _podman_of(parent: int) -> int:
    """Return the podman that a process has started, or that one's own: an ordinary user's starts itself again in its namespace."""
    for entry in Path("/proc").iterdir():
        # Others end meanwhile.
        with suppress(OSError):
            if (
                entry.name.isdecimal()
                and parent_of(int(entry.name)) == parent
                and entry.joinpath("comm").read_text() == "podman\n"
            ):
                return _podman_of(int(entry.name))
    return parent
