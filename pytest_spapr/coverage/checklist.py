"""The checklist: every scenario that a suite is to have. It stands beside the tests, as ``checklist.toml``."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from pytest_spapr.errors import ConfigError

NAME: Final = "checklist.toml"
_KEYS: Final = ("title", "reason", "exempt", "left")


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """One scenario.

    :ivar title: what it is on a pseries machine. :ivar reason: why it cannot exist on one at all. :ivar exempt: what of it cannot.
    :ivar left: what of it no test does yet, although some name it.
    """

    id: str
    theme: str
    title: str
    reason: str | None = None
    exempt: str | None = None
    left: str | None = None


def read_checklist(directory: Path) -> dict[str, Entry]:
    """Return the checklist of the tests in a directory, by id, in its order.

    :raises ConfigError: there is none, or it is not one.
    """
    path = directory / NAME
    try:
        themes = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(
            f"{path} cannot be read: {error.strerror}. Give --tests=DIR, the tests of a checkout with their {NAME}."
        ) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not TOML: {error}.") from error
    entries: dict[str, Entry] = {}
    for theme, table in themes.items():
        for name, data in table.items() if isinstance(table, dict) else ((theme, table),):
            if name in entries:
                raise ConfigError(f"{path}: {name} stands under {entries[name].theme!r} and under {theme!r}: once is right.")
            entries[name] = _parse(path, theme, name, data)
    return entries


def _parse(path: Path, theme: str, name: str, data: object) -> Entry:
    if not isinstance(data, Mapping) or "title" not in data or not all(_good(key, value) for key, value in data.items()):
        raise ConfigError(
            f"{path}: {name} is {data!r}: expected a title, and of {', '.join(_KEYS[1:])} what holds, each in words."
        )
    if "reason" in data and not data.keys().isdisjoint(("exempt", "left")):
        raise ConfigError(f"{path}: {name} has a reason why it cannot exist at all: then nothing of it is exempt or left.")
    texts: dict[str, Any] = dict(data)
    return Entry(id=name, theme=theme, **texts)


def _good(key: str, value: object) -> bool:
    return key in _KEYS and isinstance(value, str) and bool(value.strip())
