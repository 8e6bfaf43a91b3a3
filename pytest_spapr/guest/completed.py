"""A guest command that ended, whichever way it went."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import Final

from pytest_spapr.deadline import Deadline
from pytest_spapr.errors import CommandFailed, DeadlineExpired
from pytest_spapr.printable import printable
from pytest_spapr.timeline import Lane, Timeline

# Of what a command wrote, on the timeline.
_SHOWN: Final = 200
# What a command or its output is made of, as people write it.
_ESCAPES: Final = str.maketrans({"\n": r"\n", "\t": r"\t", "\r": r"\r"})
# How long a lost connection waits for the news that QEMU itself is gone, which is the better explanation.
_DEATH_NOTICE: Final = 2.0


@dataclass(frozen=True, slots=True)
class Completed:
    """A guest command that ended. :ivar status: exit status. :ivar stdout: :ivar stderr: all it wrote, as text."""

    command: str
    status: int
    stdout: str
    stderr: str

    def check(self) -> Completed:
        """Return itself.

        :raises CommandFailed: when the status is not 0.
        """
        if self.status != 0:
            raise CommandFailed(self.command, self.status, self.stdout, self.stderr)
        return self


def record_command(timeline: Timeline, lane: Lane, command: str) -> None:
    """Say on the timeline that a command is sent."""
    timeline.record(lane, f"$ {_line(command)}", {"command": command})


def record_answer(timeline: Timeline, lane: Lane, done: Completed, seconds: float) -> None:
    """Say on the timeline how a command ended and how its output begins."""
    words = _line((done.stdout + done.stderr).strip()[:_SHOWN].replace("\n", " | "))
    text = f"= {done.status} in {seconds:.3f} s" + (f": {words}" if words else "")
    timeline.record(lane, text, {"status": done.status})


def await_death_notice(timeline: Timeline) -> None:
    """Give QEMU's end a moment to be known, where it may be why a connection was lost.

    :raises MachineDied: QEMU ended.
    """
    with contextlib.suppress(DeadlineExpired):
        timeline.wait(lambda _: None, since=timeline.mark(), deadline=Deadline(_DEATH_NOTICE), what="news of QEMU's end")


def _line(text: str) -> str:
    return printable(text.translate(_ESCAPES))
