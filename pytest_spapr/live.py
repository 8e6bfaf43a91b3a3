"""Help for a person at a running test: the guest's consoles as they come, ways into its machines, deadlines that wait for a debugger."""

from __future__ import annotations

import io
import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, TextIO

from pytest_spapr.deadline import working_time
from pytest_spapr.timeline import Lane, Record, Timeline

if TYPE_CHECKING:
    from pytest_spapr.hotplug.pseries import PseriesMachine

_CONSOLES: Final = (Lane.CONSOLE, Lane.KERNEL, Lane.SERVICE)


class Tee:
    """Writes what guests say to the terminal, past pytest's capturing. To be made while pytest captures nothing."""

    def __init__(self) -> None:
        try:
            # pytest puts a file in place of the descriptor while a test runs.
            self._stream: TextIO = os.fdopen(os.dup(sys.stderr.fileno()), "w", encoding="utf-8", errors="backslashreplace")
            self._owned = True
        except (OSError, io.UnsupportedOperation):
            self._stream, self._owned = sys.stderr, False
        self._writing = threading.Lock()

    def say(self, text: str) -> None:
        """Write one line. From any thread."""
        # A terminal that is gone, or a stream that somebody closed, is no reason for a test to fail.
        with self._writing, suppress(OSError, ValueError):
            self._stream.write(f"{text}\n")
            self._stream.flush()

    def follow(self, timeline: Timeline, name: str) -> None:
        """Write what a guest has said on its consoles and all that it will say. :param name: in front of each line."""

        def show(record: Record) -> None:
            if record.lane in _CONSOLES:
                self.say(f"{name}{record}")

        begin = timeline.listen(show)
        for record in timeline.since(0):
            # What was adopted was said by another machine: the one that this is a clone of.
            if record.seq < begin and record.time >= 0:
                show(record)

    def close(self) -> None:
        if self._owned:
            with suppress(OSError):
                self._stream.close()


def ways_in(machine: PseriesMachine) -> Iterator[str]:
    """Yield how a person reaches a machine: its guest, and its second monitor if it has one."""
    yield f"log in: {machine.guest.ssh_command()}" if machine.has_guest else "it has no guest to log in to"
    if machine.backdoor is not None:
        yield f"monitor: {monitor_command(machine)}"


def monitor_command(machine: PseriesMachine) -> str:
    """Return what a person types for a shell on a machine's second monitor."""
    return f"qmp-shell -p {machine.backdoor}"


def let_deadlines_wait(debugger: Any) -> None:
    """Have deadlines stand still while a debugger waits for its user to type; what is typed runs by them.

    :param debugger: a ``cmd.Cmd`` with its hooks, as ``pdb.Pdb`` and IPython's are.
    """
    loop: Callable[..., object] = debugger.cmdloop
    before: Callable[[str], str] = debugger.precmd
    after: Callable[[bool, str], bool] = debugger.postcmd

    def cmdloop(*arguments: object, **named: object) -> None:
        working_time.stop()
        try:
            loop(*arguments, **named)
        finally:
            working_time.go()

    def precmd(line: str) -> str:
        working_time.go()
        return before(line)

    def postcmd(stop: bool, line: str) -> bool:
        stop = after(stop, line)
        working_time.stop()
        return stop

    debugger.cmdloop, debugger.precmd, debugger.postcmd = cmdloop, precmd, postcmd
