"""One connection: messages out of a stream of bytes and file descriptors, and back into it, without waiting for the client."""

from __future__ import annotations

import array
import os
import select
import socket
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

from pytest_spapr.vfio.protocol import HEADER, MAX_DESCRIPTORS, MAX_MESSAGE, Malformed, Message

# A client that reads nothing for so long, with its socket full, has its connection closed: nobody's test waits for it.
_SEND_SECONDS: Final = 1.0
_ROOM: Final = socket.CMSG_SPACE(MAX_DESCRIPTORS * array.array("i").itemsize)


class Closed(Exception):
    """The connection has come to its end, or is not to be used any more; the message says why."""


class Stream:
    """A connected socket, which it owns, and what has come of the next message."""

    def __init__(self, connected: socket.socket) -> None:
        connected.setblocking(False)
        self._socket = connected
        self._data = b""
        self._descriptors: list[int] = []

    def fileno(self) -> int:
        return self._socket.fileno()

    def receive(self) -> Message | None:
        """Return the next message if all of it has come.

        The caller owns the descriptors that came with it.

        :raises Closed: the client has gone, or sends what is no message, so that nobody knows where the next one begins.
        """
        while True:
            try:
                if (size := self._missing()) == 0:
                    return self._message()
                data, control, flags, _ = self._socket.recvmsg(size, _ROOM, socket.MSG_CMSG_CLOEXEC)
            except (BlockingIOError, InterruptedError):
                return None
            except OSError as error:
                raise Closed(f"the connection broke: {error.strerror}") from error
            except Malformed as error:
                raise Closed(str(error)) from error
            # Never more than the rest of a message is read: so they belong to this one.
            self._descriptors.extend(_descriptors(control))
            if flags & socket.MSG_CTRUNC or len(self._descriptors) > MAX_DESCRIPTORS:
                raise Closed(f"more than {MAX_DESCRIPTORS} file descriptors came with a message")
            if not data:
                raise Closed("in the middle of a message" if self._data else "disconnected")
            self._data += data

    def send(self, data: bytes) -> None:
        """Send a message. :raises Closed: the client has gone or does not read."""
        rest = memoryview(data)
        try:
            while rest:
                try:
                    rest = rest[self._socket.send(rest, socket.MSG_NOSIGNAL) :]
                except (BlockingIOError, InterruptedError):
                    if not select.select([], [self._socket], [], _SEND_SECONDS)[1]:
                        raise Closed("the client does not read what it is sent") from None
        except OSError as error:
            raise Closed(f"the connection broke: {error.strerror}") from error

    def await_data(self, seconds: float) -> bool:
        """Return whether there is something to receive, at once or within these seconds."""
        return bool(select.select([self._socket], [], [], seconds)[0])

    def close(self) -> None:
        """Close the connection and what came with half a message."""
        close_all(self._descriptors)
        self._descriptors = []
        self._socket.close()

    def _missing(self) -> int:
        """Return how many bytes to read: of the header, then of the rest. :raises Malformed: the header tells of no message."""
        if len(self._data) < HEADER.size:
            return HEADER.size - len(self._data)
        size: int = HEADER.unpack_from(self._data)[2]
        if not HEADER.size <= size <= MAX_MESSAGE:
            raise Malformed(f"a message of {size} bytes, expected {HEADER.size} to {MAX_MESSAGE}")
        return size - len(self._data)

    def _message(self) -> Message:
        number, command, _, flags, errno = HEADER.unpack_from(self._data)
        message = Message(number, command, flags, errno, self._data[HEADER.size :], self._descriptors)
        self._data, self._descriptors = b"", []
        return message


def close_all(descriptors: list[int]) -> None:
    """Close file descriptors, and forget them."""
    while descriptors:
        with suppress(OSError):
            os.close(descriptors.pop())


def _descriptors(control: list[tuple[int, int, bytes]]) -> Iterator[int]:
    for level, kind, data in control:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            numbers = array.array("i")
            numbers.frombytes(data[: len(data) - len(data) % numbers.itemsize])
            yield from numbers


def listen() -> tuple[socket.socket, int]:
    """Return a listening socket whose name is gone already, and a descriptor of the place where it was: a way to connect to it.

    A path through /proc/PID/fd leads there (proc(5)), for processes of the same user, and is short enough for a socket's address.
    """
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listener.setblocking(False)
        with tempfile.TemporaryDirectory(prefix="spapr-") as directory:
            path = Path(directory) / "s"
            listener.bind(str(path))
            listener.listen()
            return listener, os.open(path, os.O_PATH | os.O_CLOEXEC)
    except BaseException:
        listener.close()
        raise
