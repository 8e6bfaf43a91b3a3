"""What every command works with."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import TypeAlias

from pytest_spapr import config
from pytest_spapr.cache import Cache, Entry, megabytes
from pytest_spapr.debian.mirror import mirror_of
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


def number_of(what: str) -> Callable[[str], int]:
    """Return argparse's type for a number of things, at least one; ``what`` names them in the error."""

    def parse(text: str) -> int:
        if not text.isdecimal() or int(text) < 1:
            raise argparse.ArgumentTypeError(f"{text!r} is no number of {what}: expected 1 or more")
        return int(text)

    return parse
