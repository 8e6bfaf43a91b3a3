"""The rows of the contracts: read from the package's ``contracts/`` and from a user's file."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Final, Self, TypeVar

from pytest_spapr.errors import ConfigError
from pytest_spapr.hotplug.expectation import EventRule, Expectation
from pytest_spapr.hotplug.outcome import Kind, Outcome, Presence, Silence

_T = TypeVar("_T", bool, int, str)
_WORDS: Final[Mapping[type, str]] = {bool: "true or false", int: "a number", str: "text"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One promise and the builds and kernels that it holds for.

    :ivar needs: features that the build must have, e.g. ``MEM_UNPLUG_ERROR``, ``unplug-timer``. :ivar lacks: those that it must not have.
    :ivar kernel: bounds on the guest's kernel release, e.g. ``>=5.14``; None for any.
    :ivar qemu: bounds on QEMU's version, where nothing that can be probed tells the builds apart; None for any.
    """

    expectation: Expectation
    needs: frozenset[str]
    lacks: frozenset[str]
    kernel: str | None = None
    qemu: str | None = None

    @property
    def subject(self) -> tuple[Kind, str]:
        """What it speaks of: a kind of device in a situation."""
        return self.expectation.kind, self.expectation.situation

    def fits(self, features: frozenset[str], kernel: tuple[int, ...], qemu: tuple[int, ...]) -> bool:
        """Return whether the row speaks of this build and this kernel."""
        return (
            self.needs <= features
            and not self.lacks & features
            and (self.kernel is None or _within(kernel, self.kernel))
            and (self.qemu is None or _within(qemu, self.qemu))
        )

    @classmethod
    def parse(cls, data: Mapping[str, Any]) -> Self:
        """Return the row that a TOML table describes.

        :raises ConfigError: a key is missing, unknown or has a wrong value.
        """
        entry = dict(data)
        try:
            needs, lacks = (frozenset(_features(entry, key)) for key in ("needs", "lacks"))
            kernel, versions = _bounds(entry.pop("kernel", None)), _bounds(entry.pop("qemu_version", None))
            outcome = Outcome(entry.pop("outcome"))
            expectation = Expectation(
                kind=Kind(entry.pop("kind")),
                situation=_typed(entry, "situation", str),
                outcome=outcome,
                cause=Silence(entry.pop("cause")) if "cause" in entry else None,
                asked=_typed(entry, "asked", bool),
                reply=_typed(entry, "reply", str) if "reply" in entry else None,
                events=tuple(map(_rule, entry.pop("events", ()))),
                qemu=Presence(entry.pop("qemu")),
                guest=tuple(Presence(view) for view in _listed(entry.pop("guest"))),
                waiting=_typed(entry, "waiting", bool) if "waiting" in entry else outcome is Outcome.PENDING,
                source=_typed(entry, "source", str),
            )
        except (KeyError, ValueError, TypeError) as error:
            missing = f"it has no {error}" if isinstance(error, KeyError) else error
            raise ConfigError(f"contract row {dict(data)!r} is not usable: {missing}") from error
        if entry:
            raise ConfigError(f"contract row for {expectation!r} has unknown keys: {', '.join(sorted(entry))}")
        return cls(expectation=expectation, needs=needs, lacks=lacks, kernel=kernel, qemu=versions)


def packaged_rows() -> tuple[Row, ...]:
    """Return every row of the package's contracts."""
    files = (file for file in (resources.files("pytest_spapr.hotplug") / "contracts").iterdir() if file.name.endswith(".toml"))
    return tuple(
        row for file in sorted(files, key=lambda file: file.name) for row in _parse(file.read_text(encoding="utf-8"), file.name)
    )


def read_rows(path: Path) -> tuple[Row, ...]:
    """Return the rows of a user's file, which stand above those of the package.

    :raises ConfigError: it cannot be read, is no TOML, has anything but rows, or a row that is not usable.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise ConfigError(f"{path} cannot be read: {why}. Give a TOML file of contract rows.") from error
    rows = tuple(_parse(text, str(path)))
    if not rows:
        raise ConfigError(f"{path} has no contract row: expected tables that begin with [[row]].")
    return rows


def _parse(text: str, where: str) -> Iterator[Row]:
    try:
        tables = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{where} is not TOML: {error}.") from error
    entries = tables.pop("row", [])
    if tables or not (isinstance(entries, list) and all(isinstance(entry, dict) for entry in entries)):
        raise ConfigError(f"{where}: expected nothing but tables that begin with [[row]], found {', '.join(tables) or 'row'}.")
    for entry in entries:
        try:
            yield Row.parse(entry)
        except ConfigError as error:
            raise ConfigError(f"{where}: {error}") from error


def version(release: str) -> tuple[int, ...]:
    """Return the leading numbers of a release: ``6.1.0-50-powerpc64le`` is ``(6, 1, 0)``."""
    match = re.match(r"\d+(\.\d+)*", release)
    if match is None:
        raise ConfigError(f"{release!r} is not a kernel release, expected one like 6.1.0-50-powerpc64le")
    return tuple(int(number) for number in match[0].split("."))


def _typed(table: dict[str, Any], key: str, kind: type[_T]) -> _T:
    """Take a value out of a table. A value of another type would be a promise that never applies, or that nothing can keep."""
    value = table.pop(key)
    # Not isinstance: True is an int.
    if type(value) is not kind:
        raise TypeError(f"{key} is {value!r}, expected {_WORDS[kind]}")
    return value


def _features(table: dict[str, Any], key: str) -> list[str]:
    names = table.pop(key, [])
    if not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
        raise TypeError(f"{key} is {names!r}, expected a list of names")
    return names


def _rule(event: Mapping[str, Any]) -> EventRule:
    table = dict(event)
    return EventRule(_typed(table, "name", str), **{key: _typed(table, key, int) for key in list(table)})


def _bounds(text: object) -> str | None:
    """Return bounds that have been looked at: a bad one must not wait until its row is asked for."""
    if text is None:
        return None
    if not isinstance(text, str):
        raise ConfigError(f"{text!r} is not bounds, expected text like '>=5.14' or '>=6.0,<6.2'")
    _within((0,), text)
    return text


def _within(release: tuple[int, ...], bounds: str) -> bool:
    inside = True
    for bound in bounds.split(","):
        match = re.fullmatch(r"(>=|<)(\d+(?:\.\d+)*)", bound.strip())
        if match is None:
            raise ConfigError(f"{bound!r} is not a bound on a release, expected one like >=5.14 or <6.1")
        limit = tuple(int(number) for number in match[2].split("."))
        inside = inside and (release >= limit) is (match[1] == ">=")
    return inside


def _listed(value: str | list[str]) -> list[str]:
    if not value:
        raise ValueError("guest is an empty list, expected at least one view")
    return [value] if isinstance(value, str) else value
