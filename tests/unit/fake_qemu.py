"""A scripted qemu-system-ppc64, for tests of our own code only: what QEMU really does is tests/qemu's business.

Run as ``python fake_qemu.py SCRIPT QEMU-ARGUMENTS...``. SCRIPT is JSON: for each QMP command, and for ``start``, a list of steps::

    {"return": value} {"error": [class, text]} {"event": [name, data]}     a message on the monitor
    {"stderr": text} {"stdout": text}                                      a line on a stream
    {"exit": status} {"signal": number} {"hang": true}                     an end, or none
    {"raw": [text, count]}                                                 these bytes (ISO 8859-1) on the monitor, so many times
    {"hang_up": true}                                                      the monitor is closed, the process lives on
    {"child": path}                                        a child that holds stderr open and lives on; its pid goes to path

A command that is not in the script gets the answer of a small, sound QEMU 7.2. The monitor is the chardev ``qmp``, or stdio.
"""

from __future__ import annotations

import json
import os
import re
import select
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

Script = Mapping[str, Any]

VERSION = {"qemu": {"major": 7, "minor": 2, "micro": 22}, "package": "Debian 1:7.2"}
ANSWERS: dict[str, Any] = {
    "qmp_capabilities": {},
    "query-version": VERSION,
    "query-target": {"arch": "ppc64"},
    "query-machines": [{"name": "pseries-7.2", "alias": "pseries"}, {"name": "pseries-7.1"}, {"name": "none"}],
    "query-kvm": {"present": False, "enabled": False},
    "query-qmp-schema": [
        {"name": "set-action", "meta-type": "command"},
        {"name": "DEVICE_DELETED", "meta-type": "event"},
        {"name": "0", "meta-type": "object"},
    ],
    "query-command-line-options": [{"option": "sandbox", "parameters": []}],
    "qom-list-types": [{"name": "pc-dimm"}],
    "qom-list-properties": [{"name": "x-vof", "type": "bool"}, {"name": "cap-htm", "type": "string"}],
    "query-status": {"status": "prelaunch", "running": False},
}


def command(script: Script | None = None) -> list[str]:
    """Return how to run the fake."""
    return [sys.executable, "-I", __file__, json.dumps(script or {})]


def install(path: Path, script: Script | None = None) -> Path:
    """Write the fake to ``path`` as one executable file, and return it."""
    words = " ".join(f"'{word}'" for word in command(script))
    path.write_text(f'#!/bin/sh\nexec {words} "$@"\n', encoding="utf-8")
    path.chmod(0o755)
    return path


def gone(pid: int, seconds: float = 10) -> bool:
    """Wait for the end of a process that is nobody's child here; return whether it came."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([descriptor], [], [], seconds)[0])
    finally:
        os.close(descriptor)


def descriptors() -> int:
    """Return how many descriptors this process has open."""
    return len(list(Path("/proc/self/fd").iterdir()))


class _Monitor:
    def __init__(self, arguments: list[str]) -> None:
        socket_fd = re.search(r"socket,id=qmp,fd=(\d+)", " ".join(arguments))
        self._read_fd, self._write_fd = (int(socket_fd[1]),) * 2 if socket_fd else (0, 1)

    def say(self, message: Mapping[str, Any]) -> None:
        self.write(json.dumps(message).encode() + b"\r\n")

    def write(self, data: bytes) -> None:
        # Who has heard enough hangs up.
        with suppress(BrokenPipeError, ConnectionResetError):
            while data:
                data = data[os.write(self._write_fd, data) :]

    def hang_up(self) -> None:
        os.close(self._read_fd)

    def serve(self, script: Script) -> None:
        # As QEMU does: a command ends where its JSON ends, no newline is needed.
        received = ""
        while data := os.read(self._read_fd, 65536):
            received += data.decode()
            while received := received.lstrip():
                try:
                    asked, end = json.JSONDecoder().raw_decode(received)
                except ValueError:
                    break
                received = received[end:]
                name = asked["execute"]
                steps = script.get(name, [{"return": ANSWERS.get(name, {})}])
                self.do([*steps, {"exit": 0}] if name == "quit" else steps, asked.get("id"))
        signal.pause()

    def do(self, steps: Sequence[Mapping[str, Any]], identity: str | None) -> None:
        for step in steps:
            [(verb, value)] = step.items()
            match verb:
                case "return":
                    self.say({"return": value, "id": identity})
                case "error":
                    self.say({"error": {"class": value[0], "desc": value[1]}, "id": identity})
                case "event":
                    self.say({"event": value[0], "data": value[1], "timestamp": {"seconds": 1, "microseconds": 2}})
                case "stderr":
                    sys.stderr.write(f"{value}\n")
                    sys.stderr.flush()
                case "stdout":
                    sys.stdout.write(f"{value}\n")
                    sys.stdout.flush()
                case "exit":
                    os._exit(value)
                case "signal":
                    os.kill(os.getpid(), value)
                case "raw":
                    self.write(value[0].encode("latin-1") * value[1])
                case "hang":
                    signal.pause()
                case "hang_up":
                    self.hang_up()
                    signal.pause()
                case "child":
                    child = subprocess.Popen(["sleep", "1000"], stdin=subprocess.DEVNULL)
                    Path(value).write_text(str(child.pid), encoding="utf-8")
                case _:
                    raise ValueError(verb)


def main(script: Script, arguments: list[str]) -> None:
    monitor = _Monitor(arguments)
    monitor.do(script.get("start", ()), None)
    monitor.say({"QMP": {"version": VERSION, "capabilities": []}})
    monitor.serve(script)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]), sys.argv[2:])
