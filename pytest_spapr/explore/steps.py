"""The steps of histories, plain data, also as JSON.

Without a guest: QMP commands, and the RTAS calls of a guest that is played. With one: what a test would do to the machine.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from pytest_spapr.errors import ConfigError
from pytest_spapr.hotplug.drc_model import Transition


@dataclass(frozen=True, slots=True)
class Command:
    """A QMP command."""

    name: str
    arguments: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.name} {json.dumps(self.arguments)}" if self.arguments else self.name


@dataclass(frozen=True, slots=True)
class Call:
    """An RTAS call on a connector. :ivar device: the id of what is or was behind it. :ivar part: which of that one's connectors."""

    transition: Transition
    device: str
    part: int = 0

    def __str__(self) -> str:
        return f"rtas: {self.transition} {self.device}[{self.part}]"


@dataclass(frozen=True, slots=True)
class OddCall:
    """A call of ``set-indicator`` that no guest would make, which is to be refused. :ivar cells: indicator, index and value."""

    cells: tuple[int, int, int]

    def __str__(self) -> str:
        return "rtas: set-indicator {:#x} {:#x} {:#x}".format(*self.cells)


@dataclass(frozen=True, slots=True)
class TakeEvents:
    """The guest takes all that QEMU has to tell it."""

    def __str__(self) -> str:
        return "rtas: check-exception, until there is no more"


@dataclass(frozen=True, slots=True)
class Move:
    """The machine goes on in another QEMU, with whatever is pending. :ivar stored: its state is stored in a file in between."""

    stored: bool = False

    def __str__(self) -> str:
        return "save and restore" if self.stored else "migrate"


@dataclass(frozen=True, slots=True)
class Aside:
    """A QMP command by another monitor, which connects for it and goes when it has its answer."""

    command: Command

    def __str__(self) -> str:
        return f"by another monitor: {self.command}"


@dataclass(frozen=True, slots=True)
class Act:
    """Something done to a machine with a guest. :ivar name: what, see ``guest_play``. :ivar arguments: of it."""

    name: str
    arguments: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return " ".join((self.name, *(f"{name}={value}" for name, value in self.arguments.items())))


Step: TypeAlias = Command | Call | OddCall | TakeEvents | Move | Aside | Act


def named(step: Step, drivers: Mapping[str, str]) -> Step:
    """Return a step with other names for device models. :param drivers: those names, by the ones that steps have."""
    match step:
        case Aside(Command() as command):
            inner = named(command, drivers)
            assert isinstance(inner, Command)
            return Aside(inner)
        case Command(name, {"driver": driver} as arguments) if driver in drivers:
            return Command(name, {**arguments, "driver": drivers[driver]})
    return step


def as_json(steps: Iterable[Step]) -> list[Any]:
    """Return steps as what JSON can hold."""
    return [_plain(step) for step in steps]


def from_json(data: object) -> tuple[Step, ...]:
    """Return the steps that :func:`as_json` made this of.

    :raises ConfigError: it is nothing of the kind.
    """
    if not isinstance(data, Sequence):
        raise ConfigError(f"a history is a list of steps, not {data!r}")
    return tuple(map(_step, data))


def _plain(step: Step) -> dict[str, Any]:
    match step:
        case Command(name, arguments):
            return {"execute": name, "arguments": dict(arguments)}
        case Call(transition, device, part):
            return {"rtas": str(transition), "device": device, "part": part}
        case OddCall(cells):
            return {"set-indicator": list(cells)}
        case TakeEvents():
            return {"check-exception": "all"}
        case Move(stored):
            return {"migrate": "stored" if stored else "all"}
        case Aside(command):
            return {"aside": _plain(command)}
        case Act(name, arguments):
            return {"act": name, "arguments": dict(arguments)}


def _step(entry: Any) -> Step:
    try:
        match entry:
            case {"execute": str(name), "arguments": dict(arguments)}:
                return Command(name, arguments)
            case {"rtas": str(transition), "device": str(device), "part": int(part)}:
                return Call(Transition(transition), device, part)
            case {"set-indicator": [int(indicator), int(index), int(value)]}:
                return OddCall((indicator, index, value))
            case {"check-exception": "all"}:
                return TakeEvents()
            case {"migrate": "all" | "stored" as how}:
                return Move(stored=how == "stored")
            case {"aside": dict(inner)} if isinstance(command := _step(inner), Command):
                return Aside(command)
            case {"act": str(name), "arguments": dict(arguments)}:
                return Act(name, arguments)
    except ValueError as error:
        raise ConfigError(f"{entry!r} is no step of a history: {error}") from error
    raise ConfigError(
        f"{entry!r} is no step of a history: expected execute, rtas, set-indicator, check-exception, migrate, aside or act"
    )
