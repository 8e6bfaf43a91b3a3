"""Does what was typed to a machine, and tells what comes of it."""

from __future__ import annotations

import json
import shlex
import subprocess
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Final

from pytest_spapr.errors import MachineError
from pytest_spapr.interactive.lines import HELP, WORDS, Help, Hmp, InGuest, Leave, Login, Qmp, parse
from pytest_spapr.printable import printable
from pytest_spapr.timeline import Lane, Record

if TYPE_CHECKING:
    from pytest_spapr.hotplug.pseries import PseriesMachine

#: What comes by itself. Commands and their answers are told by whoever typed them.
_HEARD: Final = (Lane.EVENT, Lane.CONSOLE, Lane.KERNEL, Lane.SERVICE, Lane.STDERR)
_SHORT: Final = 100
# As long as it takes: a person has Ctrl-C.
_SECONDS: Final = 3600.0


class Session:
    """A machine and a person at it.

    :param login: runs a program that has the terminal, and returns when it ends; tests pass their own.
    :ivar over: whether the machine is to end.
    """

    def __init__(self, machine: PseriesMachine, login: Callable[[list[str]], object] = subprocess.call) -> None:
        self.over = False
        self._machine = machine
        self._login = login

    def words(self) -> list[str]:
        """Return what a line may begin with: QEMU's commands and our own."""
        return sorted(entry["name"] for entry in self._machine.qmp.execute("query-commands")) + list(WORDS)

    def do(self, text: str) -> Iterator[str]:
        """Do what a line says, and yield what to show of it; what a guest writes has no control characters any more.

        :raises ConfigError: the line means nothing. :raises SpaprError: it could not be done, or QEMU has ended.
        """
        match parse(text):
            case Qmp(name, arguments):
                yield from _shown(self._machine.qmp.execute(name, arguments))
            case Hmp(line):
                yield from _lines(self._machine.qmp.hmp(line))
            case InGuest(command):
                done = self._guest().run(command, seconds=_SECONDS)
                yield from _lines(done.stdout + done.stderr)
                if done.status:
                    yield f"[status {done.status}]"
            case Login():
                self._login(shlex.split(self._guest().ssh_command()))
            case Help():
                yield from HELP.splitlines()
            case Leave():
                self.over = True

    def _guest(self) -> Any:
        if not self._machine.has_guest:
            raise MachineError("this machine has no guest: it was started without an image")
        return self._machine.guest


def heard(record: Record) -> str | None:
    """Return the line to show of what came by itself; None for what is no news."""
    return f"[{record.time:.3f} {record.lane}] {printable(record.text)}" if record.lane in _HEARD else None


def _shown(answer: Any) -> Iterator[str]:
    text = json.dumps(answer)
    yield from [text] if len(text) <= _SHORT else json.dumps(answer, indent=1).splitlines()


def _lines(text: str) -> Iterator[str]:
    return (printable(line.expandtabs()) for line in text.splitlines())
