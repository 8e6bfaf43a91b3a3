"""A program of its own: ``python relay.py SESSION ARGUMENTS...`` is a QEMU to whoever starts it, and that QEMU runs in a nested host.

It passes on QEMU's inherited sockets, what QEMU writes to stderr, and its exit status; when it dies, QEMU is killed. In the host
``guest-images/vfio-host/keep_qemu`` does its part. Whoever would pass a file descriptor to QEMU's monitor does so in vain.

SESSION is a JSON file: ``command``, how QEMU is run in the host; ``env``; ``files``, the host's name of each file by its name here;
``ports``, the directory of the sockets behind the host's ports.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import selectors
import shlex
import signal
import socket
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

#: The port that QEMU is started through, and what stands before the names of its own.
CONTROL, PREFIX = "qemu", "nested-"
_CHARDEV = re.compile(r"socket,id=(?P<name>[a-z]+),fd=(?P<fd>\d+)")
_CHUNK = 65536
_FAILED = 127


def translated(arguments: Sequence[str], files: Mapping[str, str]) -> tuple[list[str], dict[str, int]]:
    """Return a QEMU's arguments as they are in the host, and the inherited sockets by the names of their ports.

    :param files: the host's name of each file that an argument may name.
    """
    channels: dict[str, int] = {}
    words = []
    for argument in arguments:
        for here, there in files.items():
            argument = argument.replace(here, there)
        if chardev := _CHARDEV.fullmatch(argument):
            name = chardev["name"]
            channels[name] = int(chardev["fd"])
            # A character device that is read and written, by the name that QEMU has for such since there were no sockets.
            argument = f"pipe,id={name},path=/dev/ports/{PREFIX}{name}"
        words.append(argument)
    return words, channels


class Relay:
    """Between one starter and one nested QEMU. :param session: as above."""

    def __init__(self, session: Mapping[str, Any]) -> None:
        self._session = session
        self._nonce = secrets.token_hex(8)
        self._ends = selectors.DefaultSelector()
        self._said = b""

    def run(self, arguments: Sequence[str]) -> int:
        """Run the QEMU and return its exit status, as a shell has it."""
        words, channels = translated(arguments, self._session["files"])
        control = self._connected(CONTROL)
        self._tell(control, "end", self._nonce)
        # The one before may still write to the ports of this one.
        while self._heard(control) != "ended":
            pass
        for name, fd in channels.items():
            self._join(socket.socket(fileno=fd), self._connected(PREFIX + name))
        env = [f"{name}={value}" for name, value in self._session["env"].items()]
        self._tell(control, "run", self._nonce, "env", *env, *self._session["command"], *words)
        self._ends.register(control, selectors.EVENT_READ)
        while True:
            for key, _ in self._ends.select():
                if key.fileobj is not control:
                    self._pass_on(key)
                elif (status := self._report(control)) is not None:
                    self._drain()
                    return status

    def _connected(self, port: str) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(f"{self._session['ports']}/{port}")
        return sock

    def _tell(self, control: socket.socket, *words: str) -> None:
        control.sendall(f"{shlex.join(words)}\n".encode())

    def _heard(self, control: socket.socket) -> str | None:
        """Return what the host says of this QEMU next; what else comes is dropped."""
        nonce, _, word = self._line(control).decode(errors="replace").partition(" ")
        return word if nonce == self._nonce else None

    def _line(self, control: socket.socket) -> bytes:
        while b"\n" not in self._said:
            data = control.recv(_CHUNK)
            if not data:
                raise EOFError
            self._said += data
        line, _, self._said = self._said.partition(b"\n")
        return line

    def _join(self, ours: socket.socket, theirs: socket.socket) -> None:
        self._ends.register(ours, selectors.EVENT_READ, theirs)
        self._ends.register(theirs, selectors.EVENT_READ, ours)

    def _pass_on(self, key: selectors.SelectorKey) -> None:
        source: socket.socket = key.fileobj  # type: ignore[assignment]
        try:
            data = source.recv(_CHUNK)
            if data:
                key.data.sendall(data)
        except OSError:
            data = b""
        if not data:
            self._ends.unregister(source)

    def _report(self, control: socket.socket) -> int | None:
        """Pass on what QEMU has written to stderr, line by line; return its status when that has come."""
        data = control.recv(_CHUNK)
        if not data:
            raise EOFError
        *lines, self._said = (self._said + data).split(b"\n")
        for line in lines:
            # Its last words may have had no end of line.
            words, nonce, status = line.partition(f"{self._nonce} ".encode())
            if words or not nonce:
                os.write(1, words + b"\n")
            if nonce:
                return int(status)
        return None

    def _drain(self) -> None:
        """Pass on what has come by now."""
        while ready := [key for key, _ in self._ends.select(0) if key.data is not None]:
            for key in ready:
                self._pass_on(key)


def main(session: str, arguments: Sequence[str]) -> int:
    """Run a nested QEMU and return its exit status; end as it did where a signal ended it."""
    try:
        status = Relay(json.loads(Path(session).read_text())).run(arguments)
    except (OSError, EOFError) as error:
        sys.stderr.write(f"the nested host does not answer: {error or 'it ended'}\n")
        return _FAILED
    if status > 128:
        os.kill(os.getpid(), signal.Signals(status - 128))
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))
