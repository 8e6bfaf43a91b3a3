"""A command that leaves nothing behind, however it and whoever started it end: see ``keeper.py``."""

from __future__ import annotations

import os
import secrets
import select
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Final

from pytest_spapr.avocado.container import Container
from pytest_spapr.errors import SpaprError
from pytest_spapr.qemu.process import exit_in_words

#: How directories for what such commands need while they run are called: this, the process that made it, and something of its own.
SCRATCH: Final = "spapr-night-"
_KEEPER: Final = str(Path(__file__).with_name("keeper.py"))


class KeeperDied(SpaprError):
    """The process that keeps a command was killed; the command died with it."""


class Kept:
    """A command that runs, from ``with`` to the end of its block, which gives it up if it still runs.

    :param scratch: a directory from :func:`new_scratch`, which goes with the block. :param log: where what it writes goes.
    :param seconds: between SIGTERM and SIGKILL when it is given up. :param container: what it and its keeper run in a container of, if
        anything.
    """

    def __init__(
        self, command: Sequence[str], scratch: Path, log: Path, seconds: float, container: Container | None = None
    ) -> None:
        self._scratch = scratch
        self._container = container
        self._name = f"{SCRATCH}{os.getpid()}-{secrets.token_hex(4)}"
        python = container.words(self._name) if container else [sys.executable]
        with log.open("ab") as stream:
            # Ctrl-C in a terminal is not for it.
            self._keeper = subprocess.Popen(
                [*python, "-I", "-S", _KEEPER, str(scratch), str(seconds), *command],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stream,
                start_new_session=True,
            )
        assert self._keeper.stdin is not None
        assert self._keeper.stdout is not None
        self._stdin, self._stdout = self._keeper.stdin, self._keeper.stdout

    def __enter__(self) -> Kept:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        with suppress(BrokenPipeError):
            self._stdin.close()
        self._keeper.wait()
        self._stdout.close()
        if self._container:
            # A podman that is killed leaves one that is about to end.
            self._container.remove(self._name)
        # Where the keeper could not: it was killed.
        shutil.rmtree(self._scratch, ignore_errors=True)

    def ended(self, seconds: float) -> bool:
        """Wait so long for the command's end; return whether it has ended, and nothing of it runs any more."""
        return bool(select.select([self._stdout], [], [], seconds)[0])

    def give_up(self) -> None:
        """Have the command end. Safe in a signal handler, and twice."""
        with suppress(BrokenPipeError):
            os.write(self._stdin.fileno(), b"\n")

    def status(self) -> int:
        """Wait for the command's end and return its status, as ``Popen.returncode``. :raises KeeperDied: its keeper was killed."""
        line = self._stdout.readline()
        if not line.endswith(b"\n"):
            if self._container:
                raise KeeperDied(
                    f"podman {exit_in_words(self._keeper.wait())} before the command in its container did, see stdout"
                )
            raise KeeperDied("the process that kept the command was killed, and the command with it")
        return int(line)


def new_scratch() -> Path:
    """Return a new directory for a command."""
    return Path(tempfile.mkdtemp(prefix=f"{SCRATCH}{os.getpid()}-"))


def sweep() -> None:
    """Remove what commands left whose keepers and owners were killed together; leave alone those of processes that live."""
    for left in Path(tempfile.gettempdir()).glob(f"{SCRATCH}*"):
        owner = left.name.removeprefix(SCRATCH).partition("-")[0]
        if owner.isdecimal() and not Path("/proc", owner).exists() and left.stat().st_uid == os.getuid():
            shutil.rmtree(left, ignore_errors=True)
