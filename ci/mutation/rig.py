"""Builds one break after the other and asks the watchers, in their order, until one notices."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Final, TypeVar

from ci.mutation.breaks import Break
from ci.mutation.results import Result, key
from ci.mutation.watchers import Watcher
from pytest_spapr.errors import BuildError

#: The builds' names in the cache.
PLAIN, BROKEN = "mutants-plain", "mutants-broken"
_BUILD: Final = "build"

T = TypeVar("T")

#: Builds QEMU with patches, under a name.
Make = Callable[[str, Sequence[Path]], None]


class Rig:
    """Tries breaks.

    :param tree: QEMU's unpatched source. :param make: builds it. :param watchers: the cheapest first.
    :param directory: has a directory for each break, with its patch and what the watchers left.
    """

    def __init__(self, tree: Path, make: Make, watchers: Sequence[Watcher], directory: Path) -> None:
        self._tree = tree
        self._make = make
        self._watchers = watchers
        self._directory = directory

    def key(self, broken: Break) -> str:
        """Return the key of a break's result. :raises ConfigError: it does not fit this source."""
        return key(broken.patch(self._tree))

    def build_plain(self) -> None:
        """Build what nothing is broken in. :raises BuildError: it cannot be built."""
        self._make(PLAIN, ())

    def try_break(self, broken: Break) -> Result:
        """Build a break, and ask. What a watcher notices counts if it does not notice the same of the unbroken build."""
        directory = self._directory / broken.name
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir(parents=True)
        patch = broken.patch(self._tree)
        file = directory / f"{broken.name}.patch"
        file.write_text(patch, encoding="utf-8")
        seconds: dict[str, float] = {}
        problems: list[str] = []
        try:
            _timed(seconds, _BUILD, lambda: self._make(BROKEN, [file]))
        except BuildError as error:
            return Result(name=broken.name, key=key(patch), seconds=seconds, problems=[f"build: {error}"])
        for watcher in self._watchers:
            seen = _timed(seconds, watcher.name, partial(watcher.watch, BROKEN, broken, directory))
            if seen.problem:
                problems.append(seen.problem)
            elif seen.said and watcher.is_sound(PLAIN, seen, directory):
                return Result(
                    name=broken.name, key=key(patch), by=watcher.name, said=seen.said, seconds=seconds, problems=problems
                )
            elif seen.said:
                problems.append(f"{watcher.name} says of the unbroken build, too: {seen.said}")
        return Result(name=broken.name, key=key(patch), seconds=seconds, problems=problems)


def _timed(seconds: dict[str, float], what: str, act: Callable[[], T]) -> T:
    began = time.monotonic()
    try:
        return act()
    finally:
        seconds[what] = round(time.monotonic() - began, 1)
