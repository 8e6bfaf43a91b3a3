"""What a typed line means.

A QMP command is written as in ``qmp-shell``, ``device_add driver=virtio-rng-pci id=rng0``, or as JSON. That program's own reader of such
lines is private to it, hence this one.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias

from pytest_spapr.errors import ConfigError

HELP: Final = """\
COMMAND [KEY=VALUE...]  a QMP command: query-cpus-fast, device_del id=core1; values are JSON where they can be, KEY may be a.b
{"execute": ...}        the same as JSON
!COMMAND                a shell command in the guest
!                       log in to the guest, in this terminal, until you leave its shell
.hmp LINE               a line of the human monitor: .hmp info qtree
.help                   this
.quit, Ctrl-D           end the machine"""
_EXAMPLE: Final = "expected e.g. device_add driver=virtio-rng-pci id=rng0; .help tells more"


@dataclass(frozen=True, slots=True)
class Qmp:
    """A QMP command."""

    name: str
    arguments: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Hmp:
    """A line of the human monitor."""

    line: str


@dataclass(frozen=True, slots=True)
class InGuest:
    """A shell command in the guest."""

    command: str


@dataclass(frozen=True, slots=True)
class Login:
    """A shell of the guest takes the terminal."""


@dataclass(frozen=True, slots=True)
class Help:
    """What can be typed."""


@dataclass(frozen=True, slots=True)
class Leave:
    """The machine is to end."""


Line: TypeAlias = Qmp | Hmp | InGuest | Login | Help | Leave
#: Those without arguments.
_WORDS: Final[Mapping[str, Line]] = {".help": Help(), ".quit": Leave(), ".login": Login()}
WORDS: Final = (*_WORDS, ".hmp")


def parse(text: str) -> Line | None:
    """Return what a line means, None for an empty one.

    :raises ConfigError: it means nothing.
    """
    text = text.strip()
    if not text:
        return None
    if text.startswith("!"):
        command = text[1:].strip()
        return InGuest(command) if command else Login()
    word, _, rest = text.partition(" ")
    if word == ".hmp" and rest.strip():
        return Hmp(rest.strip())
    if word.startswith("."):
        if text not in _WORDS:
            raise ConfigError(f"{text!r} is none of {', '.join(WORDS)} (which takes a line)")
        return _WORDS[text]
    return _from_json(text) if text.startswith("{") else _from_words(text)


def _from_json(text: str) -> Qmp:
    try:
        message = json.loads(text)
    except ValueError as error:
        raise ConfigError(f"this is no JSON: {error}") from error
    name, arguments = message.pop("execute", None), message.pop("arguments", {})
    if not isinstance(name, str) or not isinstance(arguments, dict) or message.keys() - {"id"}:
        raise ConfigError('this is no QMP command: expected {"execute": NAME, "arguments": {...}}')
    return Qmp(name, arguments)


def _from_words(text: str) -> Qmp:
    try:
        name, *words = shlex.split(text)
    except ValueError as error:
        raise ConfigError(f"{error}: {_EXAMPLE}") from error
    arguments: dict[str, Any] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or not all(key.split(".")):
            raise ConfigError(f"{word!r} is no KEY=VALUE: {_EXAMPLE}")
        _put(arguments, key, _value(value))
    return Qmp(name, arguments)


def _put(arguments: dict[str, Any], key: str, value: Any) -> None:
    *path, last = key.split(".")
    place = arguments
    for part in path:
        place = place.setdefault(part, {})
        if not isinstance(place, dict):
            raise ConfigError(f"{key} is below {part}, which has a value already")
    if last in place:
        raise ConfigError(f"{key} is given twice")
    place[last] = value


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text
