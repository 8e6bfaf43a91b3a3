"""A whole pytest run with a machine, and how it ends."""

from __future__ import annotations

import os
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from pytest_spapr import QemuBuild

from .telling import awaited, started

_SECONDS = 60.0
_TEST = """
    import os
    from pathlib import Path
    from pytest_spapr.deadline import Deadline

    def test_that_waits(launch_machine):
        machine = launch_machine(image=None)
        Path({told!r}).write_text(str(machine.process.pid))
        machine.timeline.wait(lambda record: None, since=0, deadline=Deadline(600), what="nothing")
    """


class Run:
    """A pytest in a process of its own whose test waits for its machine. :ivar qemu: a descriptor of QEMU's process."""

    def __init__(self, pytest_process: subprocess.Popen[str], qemu_pid: int) -> None:
        self.process = pytest_process
        self.qemu_pid = qemu_pid
        self.qemu = os.pidfd_open(qemu_pid)

    def qemu_ended(self) -> bool:
        """Wait for QEMU's end."""
        # A descriptor of a process is readable when that has ended.
        return bool(select.select([self.qemu], [], [], _SECONDS)[0])


@pytest.fixture
def run(pytester: pytest.Pytester, qemu_build: QemuBuild) -> Iterator[Run]:
    told = pytester.path / "qemu.pid"
    os.mkfifo(told)
    pytester.makepyfile(_TEST.format(told=str(told)))
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", f"--spapr-qemu={qemu_build.name}"]
    with started(command, pytester.path) as process:
        run = Run(process, int(awaited(told, process)))
        try:
            yield run
        finally:
            os.close(run.qemu)


def test_killed_it_leaves_no_qemu(run: Run) -> None:
    run.process.kill()
    assert run.process.wait(_SECONDS) == -signal.SIGKILL
    assert run.qemu_ended()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
def test_interrupted_it_leaves_no_qemu(run: Run, number: signal.Signals) -> None:
    run.process.send_signal(number)
    output, _ = run.process.communicate(timeout=_SECONDS)
    assert run.process.returncode != 0, output
    assert run.qemu_ended()


def test_a_qemu_that_is_killed_fails_the_test_at_once_and_says_why(run: Run) -> None:
    killed = time.monotonic()
    os.kill(run.qemu_pid, signal.SIGKILL)
    output, _ = run.process.communicate(timeout=_SECONDS)
    # The test ends within 2 s; the rest is pytest's report.
    assert time.monotonic() - killed < 10
    assert run.process.returncode == pytest.ExitCode.TESTS_FAILED
    assert f"MachineDied: QEMU (pid {run.qemu_pid}) was killed by SIGKILL" in output
    assert "1 failed in" in output


def test_interrupted_again_and_again_it_leaves_no_qemu(run: Run) -> None:
    """Also in the midst of what the first one sets off."""
    while run.process.poll() is None:
        run.process.send_signal(signal.SIGINT)
        with suppress(subprocess.TimeoutExpired):
            run.process.wait(0.05)
    assert run.process.returncode != 0
    assert run.qemu_ended()


def test_a_worker_that_is_killed_leaves_no_qemu_and_is_told(
    pytester: pytest.Pytester, qemu_build: QemuBuild, tmp_path: Path
) -> None:
    told = tmp_path / "qemu.pid"
    os.mkfifo(told)
    pytester.makepyfile(_TEST.format(told=str(told)))
    words = ["-p", "no:cacheprovider", "-n", "1", "--max-worker-restart=0", f"--spapr-qemu={qemu_build.name}"]
    with started([sys.executable, "-m", "pytest", *words], pytester.path) as process:
        qemu = int(awaited(told, process))
        run = Run(process, qemu)
        worker = int(re.findall(r"^PPid:\s+(\d+)", Path(f"/proc/{qemu}/status").read_text(), re.MULTILINE)[0])
        os.kill(worker, signal.SIGKILL)
        output = process.communicate(timeout=_SECONDS)[0]
        assert run.qemu_ended()
        os.close(run.qemu)
    assert process.returncode == pytest.ExitCode.TESTS_FAILED
    assert (
        "worker 'gw0' crashed while running 'test_a_worker_that_is_killed_leaves_no_qemu_and_is_told.py::test_that_waits'"
        in output
    )


@pytest.mark.parametrize(
    ("size", "told"), [("16k", r"could not be saved in {}/\S+: No space left"), ("64k", r"{}/\S+: \[Errno 28\] No space left")]
)
def test_a_full_disk_takes_nothing_from_the_failure(
    pytester: pytest.Pytester, qemu_build: QemuBuild, unprivileged_mounts: None, tmp_path: Path, size: str, told: str
) -> None:
    """Neither its reason nor the timeline's excerpt; that its files are lost is said in a sentence."""
    pytester.makepyfile("def test_that_fails(launch_machine):\n    assert launch_machine(image=None).status() == 'on fire'")
    # The namespace's root is not the owner of root's own temporary files.
    script = f"export TMPDIR='{pytester.path}' && mount -t tmpfs -o size={size} none '{tmp_path}' && exec \"$@\""
    words = ["-p", "no:cacheprovider", f"--spapr-qemu={qemu_build.name}", f"--spapr-artefacts={tmp_path}"]
    command = [
        "unshare",
        "--user",
        "--map-root-user",
        "--mount",
        "sh",
        "-c",
        script,
        "sh",
        sys.executable,
        "-m",
        "pytest",
        *words,
    ]
    with started(command, pytester.path) as process:
        output = process.communicate(timeout=_SECONDS)[0]
    assert process.returncode == pytest.ExitCode.TESTS_FAILED
    assert "== 'on fire'" in output
    assert "-> query-status" in output
    assert re.search(told.format(tmp_path), output)
    assert "Traceback" not in output
