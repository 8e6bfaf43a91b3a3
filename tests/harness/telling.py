"""Runs in processes of their own, and named pipes, by which a run's test tells the test that started it where it stands."""

from __future__ import annotations

import os
import select
import signal
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from pytest_spapr import QemuBuild

_SECONDS = 90.0


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


@contextmanager
def started(command: list[str], directory: Path, env: Mapping[str, str] | None = None) -> Iterator[subprocess.Popen[str]]:
    """Start a run that hears SIGINT, its output in a pipe; it is killed at the end of the block."""
    # A shell's background job ignores SIGINT, and so would this process; a handler becomes the default in a new program.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    with subprocess.Popen(
        command, cwd=directory, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        signal.signal(signal.SIGINT, before)
        try:
            yield process
        finally:
            process.kill()


def named(build: QemuBuild) -> str:
    """Return what ``--spapr-qemu`` is to be for the build."""
    return build.name if "/" not in build.name else str(build.binary)
