"""Streams of lines from QEMU, read by threads onto the timeline."""

from __future__ import annotations

import array
import fcntl
import os
import select
import termios
import threading
from collections.abc import Callable, Iterator
from typing import Final

from pytest_spapr.printable import printable

_CHUNK: Final = 65536
# A line without an end (a flood, a binary dump) is cut here, so that nothing grows without bound and nothing is lost.
_LONGEST: Final = 8192


class LineSplitter:
    """Cuts a stream of bytes into lines of text. Robust to any bytes: undecodable ones are escaped, control characters too."""

    def __init__(self) -> None:
        self._rest = b""

    @property
    def rest(self) -> bytes:
        """The line that is not complete."""
        return self._rest

    def feed(self, data: bytes) -> Iterator[str]:
        """Yield the lines that ``data`` completes."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        while len(self._rest) > _LONGEST:
            lines.append(self._rest[:_LONGEST])
            self._rest = self._rest[_LONGEST:]
        for line in lines:
            yield _line(line)

    def end(self) -> Iterator[str]:
        """Yield what is left when the stream has ended."""
        if self._rest:
            yield _line(self._rest)
            self._rest = b""


class LineReader:
    """A thread that reads a file descriptor until its end and gives each line to a function. Owns the descriptor.

    :param fd: a pipe or socket. :param on_line: called in the reading thread, or in that of :meth:`catch_up`; must not raise.
    """

    def __init__(self, fd: int, on_line: Callable[[str], None], *, name: str) -> None:
        self._fd = fd
        self._on_line = on_line
        self._splitter = LineSplitter()
        self._keeps = False
        # Held to read and to give away what was read, and to close.
        self._reading = threading.Lock()
        self._open = True
        self._thread = threading.Thread(target=self._read, name=f"spapr-{name}", daemon=True)
        self._thread.start()

    def join(self, seconds: float) -> bool:
        """Wait for the stream's end; return whether it came."""
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def catch_up(self) -> None:
        """Read, in this thread, what is there: the function has had every line that was complete when this was called.

        Never waits for more. Not for who holds what the function needs.
        """
        with self._reading:
            left = self._readable() if self._open else 0
            while left > 0 and (data := self._next()):
                left -= len(data)
                self._give(data)

    def keep_rest(self) -> None:
        """Let the stream's end not be the end of its last line: another stream goes on with it."""
        self._keeps = True

    @property
    def rest(self) -> bytes:
        """The line that had no end, of a stream that has ended."""
        return self._splitter.rest

    def begin_with(self, rest: bytes) -> None:
        """Take the beginning of a line from elsewhere, before anything has come."""
        for line in self._splitter.feed(rest):
            self._on_line(line)

    def _read(self) -> None:
        news = select.poll()
        news.register(self._fd, select.POLLIN)
        try:
            goes_on = True
            while goes_on:
                news.poll()
                with self._reading:
                    # Somebody may have caught up meanwhile.
                    if news.poll(0) and (goes_on := bool(data := self._next())):
                        self._give(data)
            if not self._keeps:
                for line in self._splitter.end():
                    self._on_line(line)
        finally:
            with self._reading:
                self._open = False
                os.close(self._fd)

    def _readable(self) -> int:
        """Return how many bytes are there."""
        count = array.array("i", [0])
        fcntl.ioctl(self._fd, termios.FIONREAD, count)
        return count[0]

    def _give(self, data: bytes) -> None:
        for line in self._splitter.feed(data):
            self._on_line(line)

    def _next(self) -> bytes:
        try:
            return os.read(self._fd, _CHUNK)
        except ConnectionResetError:
            # A socket whose peer was killed with unread data: an end like any other.
            return b""


def _line(data: bytes) -> str:
    return printable(data.rstrip(b"\r").decode("utf-8", errors="backslashreplace"), kept="\t")
