"""What every command works with."""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import TypeAlias

from pytest_spapr import config
from pytest_spapr.cache import Cache, Entry, megabytes
from pytest_spapr.debian.mirror import mirror_of
from pytest_spapr.errors import ConfigError
from pytest_spapr.progress import Progress

#: What an area's ``add`` gets; argparse names this class only with an underscore.
Areas: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"


class Run:
    """What every command works with: the settings that the user gave, decided as for pytest."""

    def __init__(self, arguments: argparse.Namespace, progress: Progress) -> None:
        self.arguments = arguments
        self.progress = progress
        self.settings = config.read({name: vars(arguments).get(name) for name in ("cache_dir", "debian_mirror", "offline")})
        self.cache = Cache(self.settings.cache_dir.value)

    def mirror(self) -> str:
        return mirror_of(self.settings, "what this needs", "Do it")


def tell_removed(entry: Entry) -> None:
    """Print that an entry of the cache was removed, and what it took."""
    print(f"removed {entry.path} ({megabytes(entry.size)})")


def writable(output: Path, own: str = "") -> Path:
    """Return the directory that ``--output`` names, made if need be.

    :param own: what a new directory in it is called, with the time and this process: then that one is returned.
    :raises ConfigError: nothing can be written there: better now than after half an hour.
    """
    # To the microsecond: a process may write more than once.
    directory = output / f"{own}-{datetime.now().astimezone():%Y%m%dT%H%M%S.%f}-{os.getpid()}" if own else output
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory):
            pass
    except OSError as error:
        raise ConfigError(f"--output={output}: nothing can be written there: {error.strerror}.") from error
    return directory


def number_of(what: str) -> Callable[[str], int]:
    """Return argparse's type for a number of things, at least one; ``what`` names them in the error."""

    def parse(text: str) -> int:
        if not text.isdecimal() or int(text) < 1:
            raise argparse.ArgumentTypeError(f"{text!r} is no number of {what}: expected 1 or more")
        return int(text)

    return parse
