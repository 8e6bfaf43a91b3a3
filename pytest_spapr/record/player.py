"""Plays a recorded scenario: the part of each script that is the same in all. It needs qemu.qmp, and nothing else of this package.

A step is a QMP command, a command in the guest, or what has to come before the next one: QAPI events, connectors that the guest has
configured, lines of its services, and its kernel's word that it has taken a device.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import re
import secrets
import shlex
import signal
import socket
from asyncio.subprocess import PIPE, STDOUT, Process
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

from qemu.qmp import ExecuteError, QMPClient, QMPError

# A backstop: under TCG, on a busy host.
SECONDS = 180.0
# For QEMU to end once its connections have.
END_SECONDS = 10.0
CHANNELS = ("qmp", "console", "kernel", "service", "shell")
# What an unplug comes to. More of these than were recorded are as wrong as fewer.
OUTCOMES = re.compile(r"event (DEVICE_DELETED|MEM_UNPLUG_ERROR|DEVICE_UNPLUG_GUEST_ERROR|GUEST_PANICKED)\b.*")
CONFIGURED = re.compile(r"(?:\d+@\d+\.\d+:)?spapr_drc_set_configured drc: (0x[0-9a-f]+)")
# A connector is configured before its device is the guest's.
TAKEN = re.compile(r".*: Successfully added .*drc index: .*|Memory at .* was hot-added")
READY = "guest init: ready"


class Differs(Exception):
    """It did not go as it was recorded."""


def observation(event: Mapping[str, Any]) -> str:
    """Return an event as one line, by which it is known again."""
    data = event.get("data", {})
    about = data.get("device") or data.get("path") or ""
    return f"event {event['event']} {about}".rstrip()


class Machine:
    """A QEMU that was started, and all that it has said. :ivar begun: how many commands it and its guest were given."""

    def __init__(self, process: Process, monitor: QMPClient, ends: Mapping[str, socket.socket]) -> None:
        self.process, self.monitor, self.ends = process, monitor, ends
        self.seen: Counter[str] = Counter()
        self.news = asyncio.Condition()
        self.answers = asyncio.Queue[bytes]()
        self.greeted = False
        self.begun = 0

    async def see(self, what: str) -> None:
        print("   ", what, flush=True)
        async with self.news:
            self.seen[what] += 1
            self.news.notify_all()

    async def hear_events(self) -> None:
        async for event in self.monitor.events:
            await self.see(observation(event))

    async def hear_traces(self) -> None:
        assert self.process.stdout is not None
        async for line in self.process.stdout:
            if found := CONFIGURED.match(line.decode(errors="replace")):
                await self.see(f"configured {found[1]}")

    async def hear(self, name: str) -> None:
        """Read what the guest says, for it must be read; what its services say counts, and some of its kernel's log."""
        rest = b""
        while data := await asyncio.get_running_loop().sock_recv(self.ends[name], 65536):
            *lines, rest = (rest + data).split(b"\n")
            for said in (line.decode(errors="replace").strip() for line in lines):
                if name == "service":
                    await self.see(f"guest {said}")
                elif name == "kernel" and TAKEN.fullmatch(message := said.partition(";")[2]):
                    await self.see(f"guest's kernel: {message}")

    async def hear_answers(self) -> None:
        while data := await asyncio.get_running_loop().sock_recv(self.ends["shell"], 65536):
            self.answers.put_nowait(data)

    async def come(self, wanted: Counter[str]) -> None:
        """Wait until all of these have been seen, since the beginning."""
        async with self.news:
            try:
                await asyncio.wait_for(self.news.wait_for(lambda: wanted <= self.seen), SECONDS)
            except TimeoutError:
                raise Differs(f"did not come: {', '.join(wanted - self.seen)}") from None

    async def in_guest(self, command: str) -> int:
        """Run a command in the guest, by the shell that its init keeps on a console; return its status."""
        if not self.greeted:
            nonce = secrets.token_hex(8)
            await self.exchange(f"\nhello {nonce[:2]} {nonce[2:]}\n", nonce, 2)
            self.greeted = True
        nonce = secrets.token_hex(8)
        lines = "".join(f">{line}\n" for line in command.split("\n"))
        answer = await self.exchange(f"{lines}run {nonce}\n", nonce, 3)
        return int(answer.split(nonce.encode())[2].split(b"\n")[0])

    async def exchange(self, text: str, nonce: str, marks: int) -> bytes:
        await asyncio.get_running_loop().sock_sendall(self.ends["shell"], text.encode(errors="surrogateescape"))
        answer = b""
        while answer.count(nonce.encode()) < marks:
            answer += await asyncio.wait_for(self.answers.get(), SECONDS)
        return answer

    async def execute(self, name: str, arguments: Mapping[str, Any]) -> str | None:
        """Execute a QMP command; return QEMU's words if it refused."""
        try:
            await asyncio.wait_for(self.monitor.execute(name, dict(arguments) or None), SECONDS)
        except ExecuteError as error:
            return str(error)
        except TimeoutError:
            raise Differs(f"{name} was not answered within {SECONDS:g} s") from None
        return None


@contextlib.asynccontextmanager
async def started(command: Sequence[str], environment: Mapping[str, str]) -> AsyncIterator[Machine]:
    """Start QEMU for the block. ``fd=@qmp@`` and its like in the command stand for descriptors."""
    pairs = {name: socket.socketpair() for name in CHANNELS}
    numbers = {name: str(theirs.fileno()) for name, (_, theirs) in pairs.items()}
    line = [re.sub("fd=@([a-z]+)@", lambda found: f"fd={numbers[found[1]]}", word) for word in command]
    descriptors = [theirs.fileno() for _, theirs in pairs.values()]
    process = await asyncio.create_subprocess_exec(
        *line, pass_fds=descriptors, stdout=PIPE, stderr=STDOUT, env={**os.environ, **environment}
    )
    for ours, theirs in pairs.values():
        theirs.close()
        ours.setblocking(False)
    monitor = QMPClient("scenario")
    machine = Machine(process, monitor, {name: ours for name, (ours, _) in pairs.items()})
    heard = [machine.hear_traces(), machine.hear_answers(), *(machine.hear(name) for name in ("console", "kernel", "service"))]
    tasks = [asyncio.create_task(one) for one in heard]
    try:
        await asyncio.wait_for(monitor.connect(pairs["qmp"][0]), SECONDS)
        tasks.append(asyncio.create_task(machine.hear_events()))
        yield machine
    finally:
        # First: nothing may keep it from that.
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        with contextlib.suppress(QMPError, OSError, EOFError):
            await monitor.disconnect()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await process.wait()


async def play(machine: Machine, scenario: Mapping[str, Any]) -> None:
    """Do all that was done, and check what comes of it. :raises Differs: something else than what was recorded."""
    wanted: Counter[str] = Counter()
    if scenario["boots"]:
        await machine.execute("cont", {})
        await machine.come(Counter([READY]))
    else:
        await machine.execute("query-status", {})
    async with machine.news:
        wanted.update(machine.seen)
    for step in scenario["steps"]:
        # The guest has as much time as it had.
        await asyncio.sleep(step.get("after", 0))
        machine.begun += "await" not in step
        match step:
            case {"execute": name, "error": error}:
                print(name, step.get("arguments", ""), flush=True)
                refusal = await machine.execute(name, step.get("arguments", {}))
                print(f"    -> error: {refusal}" if refusal else "    -> accepted", flush=True)
                if (refusal is None) != (error is None):
                    raise Differs(f"{name} was {'accepted' if error is None else f'refused: {error}'}")
                if name == "system_reset":
                    machine.greeted = False
            case {"guest": command, "status": status}:
                print("in the guest:", command, flush=True)
                found = await machine.in_guest(command)
                if status is not None and found != status:
                    raise Differs(f"in the guest, {command} ended with status {status}, and now with {found}")
            case {"await": observations}:
                wanted.update(observations)
                await machine.come(wanted)
    await asyncio.sleep(scenario["lasts"])
    await check(machine, wanted, scenario["left"])


async def check(machine: Machine, wanted: Counter[str], left: Sequence[str]) -> None:
    """Check that nothing came that was not recorded, and that the same devices are left."""
    # Events come before the reply of a command that was sent after them.
    children: Any = await asyncio.wait_for(machine.monitor.execute("qom-list", {"path": "/machine/peripheral"}), SECONDS)
    while not machine.monitor.events.empty():
        await asyncio.sleep(0)
    more = [what for what in machine.seen - wanted if OUTCOMES.fullmatch(what)]
    if more:
        raise Differs(f"came, and was not recorded: {', '.join(more)}")
    there = sorted(child["name"] for child in children if child["name"] != "type")
    if there != list(left):
        raise Differs(f"devices left: {', '.join(left) or 'none'} when it was recorded, now {', '.join(there) or 'none'}")


async def outcome(machine: Machine, scenario: Mapping[str, Any]) -> str | None:
    """Play a scenario; return what is different, None if nothing is."""
    playing, ended = asyncio.create_task(play(machine, scenario)), asyncio.create_task(machine.process.wait())
    await asyncio.wait({playing, ended}, return_when=asyncio.FIRST_COMPLETED)
    if ended.done():
        playing.cancel()
    try:
        await playing
    except Differs as error:
        return str(error)
    except TimeoutError:
        return f"no answer within {SECONDS:g} s"
    except (QMPError, EOFError, OSError, asyncio.CancelledError) as error:
        # An error may be none of QEMU's: what this prints may have no reader any more.
        await asyncio.wait({ended}, timeout=END_SECONDS)
        if ended.done():
            return death(machine, scenario, ended.result())
        if isinstance(error, OSError):
            raise
        return f"QEMU's monitor broke off, and QEMU lives: {error}"
    return "QEMU ended when it was recorded" if scenario["dies"] else None


def death(machine: Machine, scenario: Mapping[str, Any], status: int) -> str | None:
    """Return what is different where QEMU has ended, None if nothing is. :param status: its exit status."""
    print("QEMU ended with status", status, flush=True)
    if not scenario["dies"]:
        return "QEMU lived when it was recorded"
    commands = sum("await" not in step for step in scenario["steps"])
    if machine.begun < commands:
        return f"QEMU ended after {machine.begun} of the {commands} commands that it had when it was recorded"
    if scenario["status"] not in (None, status):
        return f"QEMU ended with status {scenario['status']} when it was recorded"
    return None


async def replay(scenario: Mapping[str, Any], qemu: Sequence[str], image: str | None) -> bool:
    """Play a scenario on a QEMU; return whether it goes as it was recorded."""
    playing = asyncio.current_task()
    assert playing is not None
    # As Ctrl-C: QEMU ends with it.
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, playing.cancel)
    words = [word.replace("@image@", image or scenario["image"]) for line in scenario["machine"] for word in shlex.split(line)]
    command = qemu or [word for line in scenario["command"] for word in shlex.split(line)]
    # What a QEMU of one's own needs, it has.
    async with started([*command, *words], {} if qemu else scenario["environment"]) as machine:
        different = await outcome(machine, scenario)
    print(f"DIFFERENT: {different}" if different else "as it was recorded", flush=True)
    return different is None


def main(scenario: Mapping[str, Any]) -> int:
    """Play a scenario on the QEMU that the command line names, or on the one that it was recorded with; return the exit status."""
    parser = argparse.ArgumentParser(
        description="Do again what was recorded. Exit status: 0 it goes as it did then, 1 it does not."
    )
    parser.add_argument("--image", metavar="DIRECTORY", help="the guest image (default: where it was when this was recorded)")
    parser.add_argument(
        "qemu", nargs=argparse.REMAINDER, metavar="QEMU [ARGUMENT...]", help="how to run QEMU (default: as it was run)"
    )
    given = parser.parse_args()
    try:
        return 0 if asyncio.run(replay(scenario, given.qemu, given.image)) else 1
    except asyncio.CancelledError:
        return 128 + signal.SIGTERM
    except BrokenPipeError:
        # Its reader has seen enough, as `head` has. What Python would still flush at its end goes nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 128 + signal.SIGPIPE
