"""A violation as people and programs can have it again: a script of plain QMP and RTAS calls, and a test for pytest."""

from __future__ import annotations

import json
import textwrap
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from pytest_spapr.explore.history import Done, Violation
from pytest_spapr.explore.model import DELETED
from pytest_spapr.explore.steps import Act, Aside, Call, Command, Move, OddCall, TakeEvents
from pytest_spapr.hotplug.drc_model import Transition
from pytest_spapr.hotplug.rtas import CELLS

_WIDTH: Final = 120
_SCRIPT: Final = '''\
#!/usr/bin/env python3
"""{story}

Usage: {name} [QEMU [ARGUMENT...]]
where QEMU is a qemu-system-ppc64. It needs qemu.qmp (`pip install qemu.qmp`). No guest runs: its RTAS calls are made through QEMU's
qtest server.
"""

import asyncio
import contextlib
import socket
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

from qemu.qmp import ExecuteError, QMPClient

QEMU = sys.argv[1:] or {command!r}
# Where the machine moves to.
ONWARD = {onward}
MACHINE = {machine!r}


class Machine:
    """A QEMU at -S, with its monitor and the qtest server that its guest's calls are made through."""

    count = 0

    def __init__(self, directory, qemu=QEMU):
        self.directory, self.qemu = directory, qemu

    async def start(self, *options):
        Machine.count += 1
        qmp, qtest, self.other = (str(Path(self.directory, f"{{name}}{{Machine.count}}")) for name in ("qmp", "qtest", "other"))
        self.qmp = QMPClient("history")
        await self.qmp.start_server(qmp)
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(qtest)
            server.listen()
            channels = ["-qmp", f"unix:{{qmp}}", "-qtest", f"unix:{{qtest}}", "-qtest-log", "none"]
            channels += ["-qmp", f"unix:{{self.other}},server=on,wait=off"]
            self.process = subprocess.Popen([*self.qemu, *MACHINE, *channels, *options])
            await self.qmp.accept()
            self.stream = server.accept()[0].makefile("rwb", buffering=0)

    async def end(self):
        with contextlib.suppress(Exception):
            await self.qmp.disconnect()
        self.process.terminate()
        return self.process.wait()

    async def execute(self, name, arguments=None, qmp=None):
        try:
            answer = await (qmp or self.qmp).execute(name, arguments)
        except ExecuteError as error:
            answer = f"error: {{error}}"
        print(name, arguments or "", "->", answer)
        await self.qmp.execute("query-status")
        for event in self.qmp.events.clear():
            print("   ", event["event"], event.get("data", {{}}))

    async def aside(self, name, arguments):
        """By another monitor, which goes then."""
        qmp = QMPClient("aside")
        await qmp.connect(self.other)
        await self.execute(name, arguments, qmp)
        await qmp.disconnect()

    async def drain(self):
        """By a command that fails, which has QEMU run what waits for RCU: the end of PCI devices and PHBs."""
        await self.execute("device_add", {{"driver": "no-such-device"}})

    async def migrate(self, *options, stored=False):
        # What is on its way to its end can be told to no other QEMU.
        await self.drain()
        other, place = Machine(self.directory, ONWARD), f"{{self.other}}.move"
        away, home = (f"exec:cat > {{place}}", f"exec:cat {{place}}") if stored else [f"unix:{{place}}"] * 2
        await other.start(*options, "-incoming", "defer")
        if not stored:
            await other.qmp.execute("migrate-incoming", {{"uri": home}})
        await self.qmp.execute("migrate", {{"uri": away}})
        status, stores = "", stored
        try:
            while status not in ("completed", "failed"):
                await asyncio.sleep(0.05)
                mine, its = [(await one.qmp.execute("query-migrate")).get("status", "") for one in (self, other)]
                status = mine if mine == "failed" else its
                if stores and mine == "completed":
                    stores = False
                    await other.qmp.execute("migrate-incoming", {{"uri": home}})
        except Exception:
            status = "failed: the other QEMU ended"
        print("migrate ->", status)
        await (self if status == "completed" else other).end()
        if status == "completed":
            self.__dict__ = other.__dict__

    def command(self, line):
        self.stream.write(f"{{line}}\\n".encode())
        answer = self.stream.readline().decode()
        while answer.startswith("IRQ"):
            answer = self.stream.readline().decode()
        return answer.split()[-1]

    def write(self, address, *cells):
        data = struct.pack(f">{{len(cells)}}I", *cells)
        self.command(f"write {{address:#x}} {{len(data)}} 0x{{data.hex()}}")

    def rtas(self, name, *arguments):
        self.write(0x1000000, *arguments)
        self.command(f"rtas {{name}} {{len(arguments)}} 0x1000000 1 0x1001000")
        status = int(self.command("read 0x1001000 4"), 16)
        return status - (1 << 32) if status >> 31 else status

    def set_indicator(self, indicator, index, value):
        print(f"set-indicator {{indicator}} {{index:#x}} {{value}} ->", self.rtas("set-indicator", indicator, index, value))

    def configure_connector(self, index):
        self.write(0x1002000, index, 0)
        while (status := self.rtas("ibm,configure-connector", 0x1002000, 0)) > 0:
            pass
        print(f"ibm,configure-connector {{index:#x}} ->", status)

    def take_events(self):
        count = 0
        while self.rtas("check-exception", 0x500, 0, 0xFFFFFFFF, 0, 0x1002000, 1024) != 1:
            count += 1
        print("check-exception ->", count, "events")


async def history(machine):
{steps}
    await machine.drain()
{rest}

async def main():
    with tempfile.TemporaryDirectory() as directory:
        machine = Machine(directory)
        await machine.start()
        try:
            await history(machine)
            print("QEMU lives")
        except Exception as error:
            print(f"{{type(error).__name__}}: {{error}}")
        print("QEMU ended with status", await machine.end())


asyncio.run(main())
'''
_TEST: Final = '''\
"""{story}"""

import tempfile
from collections import Counter
from pathlib import Path

import pytest

from pytest_spapr import LaunchMachine, PlayedGuest, QmpRefused, Qtest
{imports}from pytest_spapr.explore.observe import devices, plugs, settle, told
from pytest_spapr.hotplug.drc import connector_states
from pytest_spapr.hotplug.drc_model import State, Transition
from pytest_spapr.hotplug.rtas import Status
from pytest_spapr.qemu.vmstate import device_state


def test_{name}(launch_machine: LaunchMachine{fixtures}) -> None:
    with tempfile.TemporaryDirectory(prefix="spapr-") as directory:
        path = Path(directory, "qtest")
        machine = launch_machine(image=None, boot=False, qemu_args=Qtest.arguments(path), {shape})
        with Qtest.at(path) as qtest:
            guest = PlayedGuest(qtest)
            execute = machine.qmp.execute
{steps}
            settle(machine, {ends})
{rest}            assert told(machine) == Counter({told})
            assert devices(machine.qmp) == {devices}
            state = device_state(machine.qmp)
            assert state is not None
            assert connector_states(state) == {states}
'''


@dataclass(frozen=True, slots=True)
class Onward:
    """The build that machines move to.

    :ivar name: as ``--spapr-qemu`` takes it. :ivar command: how to run it. :ivar qemu: in words. :ivar version: e.g. ``(11, 1, 3)``.
    """

    name: str
    command: Sequence[str]
    qemu: str
    version: tuple[int, ...]


def script(
    violation: Violation,
    story: str,
    name: str,
    command: Sequence[str],
    machine: Sequence[str],
    onward: Onward | None = None,
) -> str:
    """Return a program that does what broke, for whoever has Python, qemu.qmp and a QEMU; it prints what comes of each step.

    :param story: what it is about. :param name: of its file. :param command: how to run the QEMU that it was seen with.
    :param machine: that one's arguments. :param onward: the build that the machine moves to, if it is another one.
    """
    steps = textwrap.indent("\n".join(map(_plain, violation.own)), " " * 4)
    there = "QEMU" if onward is None else repr(list(onward.command))
    return _SCRIPT.format(
        story=_wrapped(story),
        name=name,
        command=list(command),
        onward=there,
        machine=list(machine),
        steps=steps,
        rest="    machine.take_events()\n" if violation.rest.code else "",
    )


def test(violation: Violation, story: str, name: str, shape: Mapping[str, Any], onward: Onward | None = None) -> str:
    """Return a test that fails where it broke, for pytest with this plugin.

    :param name: of the test, without ``test_``. :param shape: of its machine. :param onward: as for :func:`script`.
    """
    told: Counter[tuple[str, str]] = Counter()
    lines: list[str] = []
    for done in violation.own:
        if isinstance(done.step, Move):
            lines += ["# What is on its way to its end can be told to no other QEMU.", f"settle(machine, {_ends(told)})"]
        lines += _asserted(done, onward)
        told.update(done.expected.told)
        told.update((DELETED, device) for device in done.expected.deleted)
    return _TEST.format(
        story=_wrapped(story),
        name=name,
        imports="from pytest_spapr.cells import Cell\n" if onward else "",
        fixtures=", spapr_cell: Cell" if onward else "",
        shape=", ".join(f"{key}={value!r}" for key, value in shape.items()),
        steps=textwrap.indent("\n".join(lines), " " * 12),
        ends=_ends(told),
        rest="".join(f"{' ' * 12}{line}\n" for line in violation.rest.code),
        told=dict(told),
        devices=f"set({sorted(violation.devices)})",
        states="{" + ", ".join(f"{index:#x}: State.{state.name}" for index, state in sorted(violation.states.items())) + "}",
    )


def _ends(told: Counter[tuple[str, str]]) -> int:
    return sum(times for (event, _), times in told.items() if event == DELETED)


def _plain(done: Done) -> str:
    match done.step:
        case Command(name, arguments):
            return f"await machine.execute({_arguments(name, arguments)})"
        case Call(Transition.CONFIGURE):
            return f"machine.configure_connector({done.index:#x})"
        case Call(transition):
            indicator, value = CELLS[transition]
            return f"machine.set_indicator({indicator}, {done.index:#x}, {value})  # {transition}"
        case OddCall(cells):
            return "machine.set_indicator({}, {:#x}, {})".format(*cells)
        case TakeEvents():
            return "machine.take_events()"
        case Move(stored):
            return f"await machine.migrate({', '.join([*map(repr, done.options), *(['stored=True'] if stored else [])])})"
        case Aside(Command(name, arguments)):
            return f"await machine.aside({_arguments(name, arguments)})"
        case Act():
            raise ValueError("this is a step with a guest")


def _asserted(done: Done, onward: Onward | None) -> Iterator[str]:
    match done.step:
        case Command("system_reset"):
            yield "machine.reset(wait=False)"
        case Command("device_add") as command:
            yield "since = machine.timeline.mark()"
            yield from _executed(command, done.expected.refused)
            yield f"assert plugs(machine, since) == {done.expected.attached}"
        case Command() as command:
            yield from _executed(command, done.expected.refused)
        case Call(transition):
            assert done.expected.status is not None
            status = done.expected.status.name
            yield f"assert guest.do(Transition.{transition.name}, {done.index:#x}) is Status.{status}"
        case OddCall(cells):
            yield f'assert qtest.rtas("set-indicator", {cells}) == (Status.PARAMETER_ERROR,)'
        case Move(stored):
            to = [f"spapr_cell.other_build({onward.name!r})"] if onward else []
            file = 'Path(directory, "state")'
            yield f"machine.migrate({', '.join(to + [f'through={file}'] * stored)})"
            if stored:
                yield f"{file}.unlink()"
            yield "qtest.reconnect(path)"
        case Aside(command):
            yield "# By another monitor, which goes then."
            yield from _asserted(replace(done, step=command), onward)
        case TakeEvents():
            yield f"assert qtest.take_events() == {done.expected.count}"
        case Act():
            raise ValueError("this is a step with a guest")


def _executed(command: Command, refused: bool) -> Iterator[str]:
    if refused:
        yield "with pytest.raises(QmpRefused):"
    yield f"{'    ' * refused}execute({_arguments(command.name, command.arguments)})"


def _arguments(name: str, arguments: Mapping[str, Any]) -> str:
    # Python's names for what JSON has.
    given = f", {dict(arguments)!r}" if arguments else ""
    return json.dumps(name) + given


def _wrapped(story: str) -> str:
    return "\n".join(textwrap.wrap(story, _WIDTH))
