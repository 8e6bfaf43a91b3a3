"""A terminal whose last line is typed while other lines come above it; or lines out of a file or a pipe."""

from __future__ import annotations

import select
import socket
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from typing import Final, Protocol, TextIO

from pytest_spapr.errors import ConfigError

_PROMPT: Final = "spapr> "


class Terminal(Protocol):
    """Where lines come from."""

    def read(self) -> str:
        """Return the next line. :raises EOFError: there is none. :raises KeyboardInterrupt: it was given up."""
        ...

    def hang_up(self) -> None:
        """Let there be no more lines, also for who waits for one. From any thread."""
        ...


class Typed:
    """Lines that a person types, with history and completion of their first word.

    :param words: what a line may begin with.
    """

    def __init__(self, words: Sequence[str]) -> None:
        from prompt_toolkit import PromptSession
        from prompt_toolkit.completion import WordCompleter
        from prompt_toolkit.shortcuts import CompleteStyle

        completer = WordCompleter(list(words), sentence=True)
        self._session: PromptSession[str] = PromptSession(
            _PROMPT, completer=completer, complete_while_typing=False, complete_style=CompleteStyle.READLINE_LIKE
        )
        self._gone = False

    def read(self) -> str:
        return self._session.prompt(pre_run=self._leave_if_gone)

    def hang_up(self) -> None:
        self._gone = True
        if (loop := self._session.app.loop) is not None:
            loop.call_soon_threadsafe(self._leave_if_gone)

    def _leave_if_gone(self) -> None:
        app = self._session.app
        if self._gone and app.is_running and not app.is_done:
            app.exit(exception=EOFError())


class Plain:
    """Lines that a person types at a terminal that has no cursor to move (``TERM=dumb``): what comes meanwhile comes in between.

    prompt_toolkit has an application of its own there for each line, which nobody else can end.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._told, self._tells = socket.socketpair()

    def read(self) -> str:
        print(_PROMPT, end="", flush=True)
        told = self._told.fileno()
        ready, _, _ = select.select([self._stream.fileno(), told], [], [])
        # A terminal gives one line at a time, so that none waits in the stream.
        line = "" if told in ready else self._stream.readline()
        if not line:
            raise EOFError
        return line

    def hang_up(self) -> None:
        # After the last line nobody is there to be told.
        with suppress(OSError):
            self._tells.send(b".")

    def close(self) -> None:
        self._told.close()
        self._tells.close()


class Piped:
    """Lines out of a file or a pipe, each of which is shown as if it were typed."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def read(self) -> str:
        line = self._stream.readline()
        if not line:
            raise EOFError
        print(f"{_PROMPT}{line.rstrip()}", flush=True)
        return line

    def hang_up(self) -> None:
        """Nothing waits for a pipe for long, or there is nobody to tell."""


def require_typing(stream: TextIO | None = None) -> None:
    """Check that lines can be typed, if there is a person to do it. :raises ConfigError: there is no prompt_toolkit."""
    if (stream or sys.stdin).isatty():
        try:
            import prompt_toolkit  # noqa: F401 - whether it is there
        except ImportError as error:
            raise ConfigError(
                "spapr boot needs prompt_toolkit where a person types, and it is not installed: pip install 'pytest-spapr[live]'."
            ) from error


@contextmanager
def terminal(words: Callable[[], Sequence[str]], stream: TextIO | None = None) -> Iterator[Terminal]:
    """Yield a terminal for the ``with`` block, in which everything that is printed comes above what is typed.

    :param words: returns what a line may begin with. :param stream: where lines come from, by default standard input.
    """
    stream = stream or sys.stdin
    if not stream.isatty():
        yield Piped(stream)
        return
    from prompt_toolkit.patch_stdout import patch_stdout
    from prompt_toolkit.utils import is_dumb_terminal

    if is_dumb_terminal():
        with closing(Plain(stream)) as plain:
            yield plain
        return
    with patch_stdout():
        yield Typed(words())
