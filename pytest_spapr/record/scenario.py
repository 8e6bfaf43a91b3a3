"""What was done to a machine, read from its timeline: the steps that change something, and what came of them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias

from pytest_spapr.errors import SpaprError
from pytest_spapr.hotplug.drc import traced
from pytest_spapr.qemu.qmp import SAVE_DEVICES
from pytest_spapr.record.player import TAKEN, observation
from pytest_spapr.timeline import Lane, Record

#: Commands that only ask, and those that lend the descriptor that an answer is written to (``Qmp.lent``).
_ASKS: Final = re.compile(rf"query-.*|qom-list.*|qom-get|device-list-properties|qmp_capabilities|{SAVE_DEVICES}|add-fd|remove-fd")
#: Commands that refer to what only this process has: descriptors, files of its own, another QEMU.
_BOUND: Final = re.compile(r"getfd|migrate.*|.*snapshot.*|chardev-add|blockdev-add|netdev_add")
_EVENTS: Final = re.compile(r"DEVICE_DELETED|.*UNPLUG.*ERROR|RESET|SHUTDOWN|GUEST_PANICKED")
_CONFIGURED: Final = "spapr_drc_set_configured"
_SERVICES: Final = re.compile(r"drmgr: end .*|init: ready")
# What the plugin asks of a guest it reads with builtins; what changes something writes to a file, or is one of these.
_CHANGES: Final = re.compile(r">|^(killall|rtas_errd_start|drmgr|modprobe|rmmod)\b")
#: Shorter pauses are the plugin's own work.
_PAUSE: Final = 0.05


class Unrecordable(SpaprError):
    """What was done cannot be done by a script: the message says why."""


@dataclass(frozen=True, slots=True)
class Execute:
    """A QMP command. :ivar after: seconds since what came before. :ivar error: QEMU's words if it refused."""

    name: str
    arguments: Mapping[str, Any]
    after: float
    error: str | None


@dataclass(frozen=True, slots=True)
class InGuest:
    """A command in the guest. :ivar status: how it has to end; None for what the plugin does on its own account."""

    command: str
    after: float
    status: int | None


@dataclass(frozen=True, slots=True)
class Await:
    """What came before the next step. :ivar observations: as the player knows them."""

    observations: tuple[str, ...]


Step: TypeAlias = Execute | InGuest | Await


@dataclass(frozen=True, slots=True)
class Scenario:
    """What was done, and what it came to.

    :ivar boots: whether the guest was up before the first step. :ivar left: the devices at its end. :ivar lasts: seconds after the last
        step. :ivar dies: whether QEMU died of it. :ivar status: its exit status then, if it is known.
    """

    boots: bool
    steps: tuple[Step, ...]
    left: tuple[str, ...]
    lasts: float
    dies: bool
    status: int | None = None


def recorded(
    records: Iterable[Record], *, boots: bool, left: Iterable[str], ended: float, dies: bool, status: int | None = None
) -> Scenario:
    """Return what these records of a machine's timeline tell.

    :param records: from the moment on at which the machine was there. :param boots: whether its guest was up by then.
    :param left: the devices that are there now. :param ended: the time of the scenario's end. :param dies: whether QEMU died of it.
    :param status: its exit status then, if it is known.
    :raises Unrecordable: it cannot be done again by a script.
    """
    reader = _Reader()
    for record in records:
        reader.read(record)
    lasts = 0.0 if dies else max(0.0, ended - reader.last)
    if not dies and (silent := reader.unanswered()) is not None:
        raise Unrecordable(f"`{silent}` was never answered")
    return Scenario(boots, reader.steps(), tuple(sorted(left)), round(lasts, 2), dies, status)


@dataclass(slots=True)
class _Open:
    """A command whose end is not read yet."""

    make: type[Execute | InGuest]
    what: tuple[Any, ...]
    after: float
    end: Any = None
    own: bool = True
    answered: bool = False


@dataclass(slots=True)
class _Reader:
    """Reads records in order. :ivar last: the time of the last one that counts."""

    last: float = 0.0
    _begun: bool = False
    _steps: list[_Open | list[str]] = field(default_factory=list)
    _sent: dict[object, _Open | None] = field(default_factory=dict)
    _asked: dict[Lane, _Open | None] = field(default_factory=dict)

    def read(self, record: Record) -> None:
        if not self._begun:
            self._begun, self.last = True, record.time
        match record.lane:
            case Lane.QMP if record.data is not None:
                self._read_qmp(record, record.data)
            case Lane.SSH | Lane.SHELL if record.data is not None:
                self._read_guest(record, record.data)
            case _ if (seen := _observed(record)) is not None:
                if not self._steps or isinstance(self._steps[-1], _Open):
                    self._steps.append([])
                waited = self._steps[-1]
                assert isinstance(waited, list)
                waited.append(seen)
                self.last = record.time

    def steps(self) -> tuple[Step, ...]:
        made: list[Step] = []
        for one in self._steps:
            if isinstance(one, list):
                made.append(Await(tuple(one)))
            elif one.make is Execute:
                made.append(Execute(one.what[0], one.what[1], one.after, one.end))
            else:
                made.append(InGuest(one.what[0], one.after, one.end if one.own else None))
        return tuple(made)

    def unanswered(self) -> str | None:
        """Return the first command that has no answer, if any."""
        return next((one.what[0] for one in self._steps if isinstance(one, _Open) and not one.answered), None)

    def _read_qmp(self, record: Record, message: Mapping[str, Any]) -> None:
        if "execute" in message:
            name, arguments = message["execute"], message.get("arguments", {})
            asks = _ASKS.fullmatch(name) or str(arguments.get("command-line", "")).startswith("info ")
            if not asks and _BOUND.fullmatch(name):
                raise Unrecordable(f"{name} refers to what only the test has")
            self._sent[message.get("id")] = None if asks else self._begin(record, Execute, (name, arguments))
        elif (sent := self._sent.pop(message.get("id"), None)) is not None:
            error = message.get("error")
            sent.end, sent.answered = error["desc"] if isinstance(error, dict) else None, True
            self.last = record.time

    def _read_guest(self, record: Record, data: Mapping[str, Any]) -> None:
        if "command" in data:
            own = record.lane is Lane.SSH
            counts = own or _CHANGES.search(data["command"])
            begun = self._begin(record, InGuest, (data["command"],)) if counts else None
            if begun is not None:
                begun.own = own
            self._asked[record.lane] = begun
        elif (asked := self._asked.pop(record.lane, None)) is not None:
            asked.end, asked.answered = data["status"], True
            self.last = record.time

    def _begin(self, record: Record, make: type[Execute | InGuest], what: tuple[Any, ...]) -> _Open:
        pause = record.time - self.last
        begun = _Open(make, what, round(pause, 2) if pause >= _PAUSE else 0.0)
        self._steps.append(begun)
        self.last = record.time
        return begun


def _observed(record: Record) -> str | None:
    """Return what a record is to the player; None for what does not count."""
    if record.event is not None and record.data is not None:
        return observation(record.data) if _EVENTS.fullmatch(record.event) else None
    if (index := traced(record, _CONFIGURED)) is not None:
        return f"configured {index:#x}"
    if record.lane is Lane.SERVICE and _SERVICES.fullmatch(record.text):
        return f"guest {record.text}"
    if record.lane is Lane.KERNEL and TAKEN.fullmatch(record.text):
        return f"guest's kernel: {record.text}"
    return None


def as_data(steps: Sequence[Step]) -> list[dict[str, Any]]:
    """Return steps as the player takes them."""
    return [_plain(step) for step in steps]


def _plain(step: Step) -> dict[str, Any]:
    plain: dict[str, Any]
    match step:
        case Execute(name, arguments, after, error):
            plain = {"execute": name, "arguments": dict(arguments), "error": error, "after": after}
        case InGuest(command, after, status):
            plain = {"guest": command, "status": status, "after": after}
        case Await(observations):
            plain = {"await": list(observations)}
    return {key: value for key, value in plain.items() if value or key not in ("after", "arguments")}
