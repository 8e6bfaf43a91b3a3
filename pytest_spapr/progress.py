"""How long steps say where they are: a rewritten line on a terminal, plain lines in a log, or nothing."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol, TextIO


class Progress(Protocol):
    """What a long step tells its reader."""

    def phase(self, text: str) -> None:
        """A new phase begins; the one before is done."""

    def update(self, done: int, total: int, text: str) -> None:
        """``done`` of ``total`` pieces of the phase are finished; ``text`` names the piece at hand."""

    def done(self) -> None:
        """The last phase is done."""


class NullProgress:
    """Says nothing."""

    def phase(self, text: str) -> None: ...

    def update(self, done: int, total: int, text: str) -> None: ...

    def done(self) -> None: ...


class _Timed:
    """Shared by the two that write: which phase runs, and since when."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._phase = ""
        self._start = 0.0

    def _begin(self, text: str) -> None:
        self._phase = text
        self._start = time.monotonic()

    def _seconds(self) -> str:
        return f"{time.monotonic() - self._start:.1f} s"


class TerminalProgress(_Timed):
    """Rewrites one line per phase; for a terminal.

    :param columns: the line's width; longer text is cut, because a wrapped line cannot be rewritten.
    """

    def __init__(self, stream: TextIO, columns: int = 79) -> None:
        super().__init__(stream)
        self._columns = columns

    def phase(self, text: str) -> None:
        self.done()
        self._begin(text)
        self._rewrite(f"{text} ...")

    def update(self, done: int, total: int, text: str) -> None:
        self._rewrite(f"{self._phase}: {done} of {total} {text}")

    def done(self) -> None:
        if self._phase:
            self._rewrite(f"{self._phase}: {self._seconds()}")
            self._stream.write("\n")
            self._stream.flush()
        self._phase = ""

    def _rewrite(self, text: str) -> None:
        self._stream.write("\r\x1b[K" + text[: self._columns])
        self._stream.flush()


class PlainProgress(_Timed):
    """One line when a phase begins, one when it ends, and while it lasts at most one every ``interval`` seconds; for logs."""

    def __init__(self, stream: TextIO, interval: float = 5.0) -> None:
        super().__init__(stream)
        self._interval = interval
        self._said = 0.0

    def phase(self, text: str) -> None:
        self.done()
        self._begin(text)
        self._line(f"{text} ...")

    def update(self, done: int, total: int, text: str) -> None:
        if time.monotonic() - self._said >= self._interval:
            self._line(f"{self._phase}: {done} of {total} {text}")

    def done(self) -> None:
        if self._phase:
            self._line(f"{self._phase}: {self._seconds()}")
        self._phase = ""

    def _line(self, text: str) -> None:
        self._said = time.monotonic()
        self._stream.write(text + "\n")
        self._stream.flush()


def progress_for(stream: TextIO, columns: int = 79) -> Progress:
    """Return the kind of progress that suits ``stream``."""
    return TerminalProgress(stream, columns) if stream.isatty() else PlainProgress(stream)


@contextmanager
def finished(progress: Progress) -> Iterator[Progress]:
    """Close the last phase when the block ends, also by an error."""
    try:
        yield progress
    finally:
        progress.done()
