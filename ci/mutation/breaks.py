"""The breaks as data: a line of QEMU's source, what stands there instead, and why that is wrong."""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from pytest_spapr.errors import ConfigError

_TABLE: Final = "break"
_REQUIRED: Final = ("name", "file", "old", "new", "why")
_NAME: Final = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")


@dataclass(frozen=True, kw_only=True, slots=True)
class Break:
    """A one-line break of QEMU.

    :ivar file: in its source tree. :ivar function: the one that the line stands in; empty for a line that the file has but once.
    :ivar old: the line, without the blanks around it. :ivar new: what stands there instead. :ivar why: it is wrong.
    :ivar tests: the modules with a guest that should notice, should nothing cheaper do so.
    """

    name: str
    file: str
    old: str
    new: str
    why: str
    function: str = ""
    tests: tuple[str, ...] = ()

    def patch(self, tree: Path) -> str:
        """Return the break as a patch for ``patch -p1``. :param tree: QEMU's source.

        :raises ConfigError: the line does not stand there, or more than once; the message names the break.
        """
        try:
            lines = (tree / self.file).read_text(encoding="utf-8").splitlines(keepends=True)
        except OSError as error:
            raise ConfigError(f"break {self.name}: {self.file}: {error.strerror}: no file of this QEMU.") from error
        places = [number for number in self._places(lines) if lines[number].strip() == self.old]
        where = f"{self.file}, {self.function}" if self.function else self.file
        if len(places) != 1:
            raise ConfigError(
                f"break {self.name}: {where}: {self.old!r} stands there {len(places)} times, expected once. This QEMU has other code: "
                "bring the break up to date, or name a narrower function."
            )
        [number] = places
        old = lines[number]
        indent = old[: len(old) - len(old.lstrip())]
        broken = [*lines[:number], f"{indent}{self.new}\n", *lines[number + 1 :]]
        return "".join(difflib.unified_diff(lines, broken, f"a/{self.file}", f"b/{self.file}"))

    def _places(self, lines: Sequence[str]) -> Iterator[int]:
        """Yield the numbers of the lines among which it is looked for."""
        if not self.function:
            yield from range(len(lines))
            return
        head = re.compile(rf"^\S.*\b{re.escape(self.function)}\(")
        for first, line in enumerate(lines):
            if not head.match(line):
                continue
            # Up to the body, or to the semicolon of a mere declaration.
            body = next((number for number in range(first, len(lines)) if lines[number].rstrip().endswith(("{", ";"))), first)
            if lines[body].rstrip() == "{":
                end = next((number for number in range(body, len(lines)) if lines[number].startswith("}")), len(lines))
                yield from range(body, end)


def read_breaks(file: Path) -> tuple[Break, ...]:
    """Return the breaks of a file. :raises ConfigError: it is none, or something in it is wrong; the message says which break."""
    try:
        data = tomllib.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{file}: {error}: expected a TOML file of [[{_TABLE}]] tables.") from error
    entries = data.get(_TABLE)
    if not isinstance(entries, list) or not entries or set(data) != {_TABLE}:
        raise ConfigError(f"{file}: expected [[{_TABLE}]] tables and nothing else.")
    found = tuple(_break(file, number, entry) for number, entry in enumerate(entries, start=1))
    names = [one.name for one in found]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ConfigError(f"{file}: two breaks are called {twice[0]}.")
    return found


def _break(file: Path, number: int, entry: Any) -> Break:
    name = entry.get("name", f"number {number}") if isinstance(entry, dict) else f"number {number}"
    where = f"{file}: break {name}"
    if not isinstance(entry, dict):
        raise ConfigError(f"{where} is no table.")
    texts = {key: value for key, value in entry.items() if key != "tests"}
    tests = entry.get("tests", [])
    if missing := [key for key in _REQUIRED if not entry.get(key)]:
        raise ConfigError(f"{where} has no {', '.join(missing)}.")
    if unknown := sorted(texts.keys() - {*_REQUIRED, "function"}):
        raise ConfigError(f"{where}: what is {unknown[0]}? Known are {', '.join(_REQUIRED)}, function, tests.")
    if not isinstance(tests, list) or not all(isinstance(text, str) for text in (*texts.values(), *tests)):
        raise ConfigError(f"{where}: expected text for each key, and a list of texts for tests.")
    if not _NAME.fullmatch(name):
        raise ConfigError(f"{where}: a name has small letters, digits and single dashes.")
    lines = [entry["old"], entry["new"]]
    if any(line != line.strip() or "\n" in line for line in lines) or len(set(lines)) == 1:
        raise ConfigError(f"{where}: expected old and new to be two different lines, without blanks around them.")
    return Break(**texts, tests=tuple(tests))
