"""What the command lines of maintainers' tools have in common: how they end, and how they tell what takes its time."""

from __future__ import annotations

import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Final

import filelock

from pytest_spapr.errors import ConfigError, SpaprError
from pytest_spapr.progress import Progress, finished, progress_for

#: The exit status after Ctrl-C.
INTERRUPTED: Final = 128 + signal.SIGINT


class _Terminated(BaseException):
    """SIGTERM, which is to end what a tool has started as Ctrl-C does."""


def ended(name: str, run: Callable[[], int]) -> int:
    """Do a tool's work and return its exit status: 2 for what cannot be done, which is told, 130 after Ctrl-C, 143 after SIGTERM.

    :param name: the tool's.
    """
    before = signal.signal(signal.SIGTERM, _terminate)
    try:
        return run()
    except SpaprError as error:
        sys.stderr.write(f"{name}: {error}\n")
        return 2
    except KeyboardInterrupt:
        return INTERRUPTED
    except _Terminated:
        return 128 + signal.SIGTERM
    finally:
        signal.signal(signal.SIGTERM, before)


def _terminate(_number: int, _frame: FrameType | None) -> None:
    raise _Terminated


@contextmanager
def progress_shown() -> Iterator[Progress]:
    """Tell on standard error what the ``with`` block does, where that takes its time."""
    progress = progress_for(sys.stderr, shutil.get_terminal_size().columns - 1)
    with finished(progress):
        yield progress


def require_directory(path: Path, option: str) -> Path:
    """Return the directory, made if need be. :raises ConfigError: it cannot be: better now than after the work."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{option}={path}: cannot be made: {error.strerror}.") from error
    return path.absolute()


@contextmanager
def alone(results: Path, who: str) -> Iterator[Path]:
    """Have a tool write to a directory of results, which is made if need be, as the only one; yield its absolute path.

    :param who: the tool. :raises ConfigError: another one writes there, or it cannot be written to.
    """
    directory = require_directory(results, "--results")
    lock = filelock.FileLock(directory / "lock", timeout=0)
    try:
        lock.acquire()
    except filelock.Timeout:
        raise ConfigError(f"--results={directory}: another {who} writes there. Wait for it, or name another directory.") from None
    except OSError as error:
        raise ConfigError(f"--results={directory}: cannot be written to: {error.strerror}.") from error
    try:
        yield directory
    finally:
        lock.release()
