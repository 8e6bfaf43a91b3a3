"""A whole pytest run with a machine, and how it ends."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pytest_spapr import QemuBuild

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


@contextmanager
def started(command: list[str], directory: Path) -> Iterator[subprocess.Popen[str]]:
    # A shell's background job ignores SIGINT, and so would this process; a handler becomes the default in a new program.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    with subprocess.Popen(command, cwd=directory, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        signal.signal(signal.SIGINT, before)
        try:
            yield process
        finally:
            process.kill()


def awaited(fifo: Path, process: subprocess.Popen[str]) -> str:
    """Return what is written to a named pipe before the run ends, which would be the wrong thing."""
    reader, run = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK), os.pidfd_open(process.pid)
    try:
        if reader in select.select([reader, run], [], [], _SECONDS)[0]:
            return os.read(reader, 100).decode()
    finally:
        os.close(reader)
        os.close(run)
    process.kill()
    raise AssertionError(f"the run started no machine: {process.communicate()[0]}")


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
