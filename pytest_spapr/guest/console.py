"""The console shell: one shell that the guest's init keeps on a console of its own (hvc3), for what the plugin itself asks.

A command costs 5 ms under TCG and no connection has to be made first: no network, no cryptography, one fork in the guest.
``guest-images/common/console_shell`` is the other end::

    host                      guest
    hello NON CE              NONCE PID NONCE            before the first command to each new shell
    >line of a command
    >another one
    run NONCE                 NONCE STDOUT NONCE STATUS \\n STDERR NONCE

Each nonce is random and used once, so that neither output nor the answer to an earlier command can be taken for this one's. A shell
ignores all that comes before it was greeted: the rest of a command to its predecessor is never run. A greeting's nonce is sent in two
parts, so that a terminal that echoes, as each does before the init has set it up, is no shell.
"""

from __future__ import annotations

import select
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from secrets import token_hex
from typing import Final

from pytest_spapr.deadline import Deadline
from pytest_spapr.errors import DeadlineExpired, ShellFailed
from pytest_spapr.guest.completed import Completed, await_death_notice, record_answer, record_command
from pytest_spapr.timeline import Lane, Timeline

_CHUNK: Final = 65536
_TAIL: Final = 500
_NONCE_BYTES: Final = 8
# Far beyond what a shell that is there needs, on the slowest host. ssh does without it.
_GREETING_SECONDS: Final = 20.0
_JOIN_SECONDS: Final = 5.0


class ShellAbsent(ShellFailed):
    """The guest's console shell does not answer, or a command was lost in it. The command at hand was not sent."""


class ConsoleShell:
    """The host's end. Runs one command at a time, for any number of threads. Owns the socket and always reads it.

    Whoever sees the guest reset, halted or its shell ended says so: :meth:`forget`, :meth:`hang_up`, :meth:`ended`.
    """

    def __init__(self, sock: socket.socket, timeline: Timeline) -> None:
        self._sock = sock
        self._timeline = timeline
        self._turn = threading.Lock()
        self._changed = threading.Condition()
        # All below is guarded by _changed.
        self._answer: _Answer | None = None
        self._pid: int | None = None
        self._interruption: str | None = None
        self._halted = False
        self._lost = False
        self._closed = False
        # QEMU writes for the guest with everything stopped: what nobody reads would hang it.
        self._thread = threading.Thread(target=self._read, name="spapr-shell", daemon=True)
        self._thread.start()

    def run(self, command: str, deadline: Deadline) -> Completed:
        """Run a shell command as root and return what it did, whatever its status.

        It runs in a subshell of its own with ``/dev/null`` as input; its output is a terminal in raw mode. What it leaves in the
        background must have its output elsewhere.

        :raises ShellAbsent: nothing was sent. :raises ShellFailed: the shell or its guest ended, or was reset, meanwhile.
        :raises DeadlineExpired: the command did not end; the shell is given up until the guest's next boot.
        :raises MachineDied: QEMU ended meanwhile.
        """
        # A waiting thread's turn comes when the one before has its answer, at the latest at that one's deadline.
        if not self._turn.acquire(timeout=deadline.remaining):
            raise DeadlineExpired(f"its turn for the guest command `{command}`", deadline.seconds)
        try:
            self._greet(deadline)
            record_command(self._timeline, Lane.SHELL, command)
            began = time.monotonic()
            answer = self._command(command, deadline)
            done = Completed(command, *answer.completed())
            record_answer(self._timeline, Lane.SHELL, done, time.monotonic() - began)
            return done
        finally:
            self._turn.release()

    def forget(self) -> None:
        """Say that the guest was reset: its next boot has another shell."""
        with self._changed:
            self._halted = self._lost = False
            self._interrupt("the guest was reset")

    def hang_up(self) -> None:
        """Say that the guest answers no more, until :meth:`forget`. From any thread, and never waits."""
        with self._changed:
            self._halted = True
            self._changed.notify_all()

    def ended(self, pid: int) -> None:
        """Say that the shell with this process number is gone and that there is another."""
        with self._changed:
            # News travel by another stream: the next shell may have been greeted already.
            if pid == self._pid:
                self._lost = False
                self._interrupt("the guest's console shell was killed")

    def close(self) -> None:
        """Give back the thread and the socket; QEMU has ended."""
        self._thread.join(_JOIN_SECONDS)
        if not self._thread.is_alive():
            self._sock.close()

    def _greet(self, deadline: Deadline) -> None:
        with self._changed:
            if self._lost:
                raise ShellAbsent("the guest's console shell was lost")
            if self._pid is not None:
                return
            self._interruption = None
        limit = deadline.sooner(_GREETING_SECONDS)
        with self._listening(2) as answer:
            # The empty line ends whatever half a line its predecessor was sent.
            what = "a greeting of the guest's console shell"
            if not self._exchange(f"\nhello {answer.nonce[:2]} {answer.nonce[2:]}\n", answer, limit, what):
                self._lose()
                raise ShellAbsent(f"the guest's console shell did not answer within {limit.seconds:.1f} s")
            with self._changed:
                if self._interruption is None:
                    self._pid = answer.number()

    def _command(self, command: str, deadline: Deadline) -> _Answer:
        with self._listening(3) as answer:
            body = "".join(f">{line}\n" for line in command.split("\n"))
            if not self._exchange(f"{body}run {answer.nonce}\n", answer, deadline, f"`{command}`"):
                self._lose()
                self._timeline.record(Lane.SHELL, f"= no end within {deadline.seconds:.1f} s")
                raise DeadlineExpired(f"the guest command `{command}`", deadline.seconds, f"it wrote {answer.tail!r}")
            return answer

    @contextmanager
    def _listening(self, marks: int) -> Iterator[_Answer]:
        """Collect what the guest writes in the ``with`` block; else it is nobody's and is dropped."""
        answer = _Answer(token_hex(_NONCE_BYTES), marks)
        with self._changed:
            self._answer = answer
        try:
            yield answer
        finally:
            with self._changed:
                self._answer = None

    def _exchange(self, text: str, answer: _Answer, deadline: Deadline, what: str) -> bool:
        """Send the text and wait for the whole answer; return whether it came in time."""
        if not self._send(text.encode(errors="surrogateescape"), deadline, what):
            return False
        with self._changed:
            while not answer.complete:
                if self._stopped:
                    break
                if not self._changed.wait(deadline.remaining) and deadline.expired:
                    return False
            else:
                return True
        raise self._failure(what)

    def _send(self, data: bytes, deadline: Deadline, what: str) -> bool:
        """Send all; return whether the guest took it in time."""
        while data:
            if self._stopped:
                raise self._failure(what)
            try:
                data = data[self._sock.send(data, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL) :]
            except BlockingIOError:
                # Looks up now and then: the guest may have ended, which the socket does not tell.
                select.select([], [self._sock], [], min(deadline.remaining, 0.1))
                if deadline.expired:
                    return False
            except OSError:
                with self._changed:
                    self._closed = True
        return True

    @property
    def _stopped(self) -> bool:
        return self._closed or self._halted or self._interruption is not None

    def _failure(self, what: str) -> ShellFailed:
        """Return why no answer comes; raises the reason of QEMU's death instead where there is one."""
        if self._closed:
            await_death_notice(self._timeline)
        reason = self._interruption or ("the guest halted" if self._halted else "QEMU closed the console")
        return ShellFailed(f"no answer to {what}: {reason} meanwhile")

    def _interrupt(self, reason: str) -> None:
        self._pid = None
        self._interruption = reason
        self._changed.notify_all()

    def _lose(self) -> None:
        with self._changed:
            self._lost = True
        self._timeline.step("the guest's console shell is lost: ssh does its work until the next boot")

    def _read(self) -> None:
        while data := self._next():
            with self._changed:
                if self._answer is not None:
                    self._answer.feed(data)
                    if self._answer.complete:
                        self._changed.notify_all()
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _next(self) -> bytes:
        try:
            return self._sock.recv(_CHUNK)
        except OSError:
            # A peer that was killed with unread data: an end like any other.
            return b""


class _Answer:
    """What the guest writes, up to the last of so many marks."""

    def __init__(self, nonce: str, marks: int) -> None:
        self.nonce = nonce
        self._mark = nonce.encode()
        self._parts: list[bytes] = []
        self._expected = marks
        self._rest = bytearray()
        self._searched = 0

    @property
    def complete(self) -> bool:
        return len(self._parts) == self._expected

    def feed(self, data: bytes) -> None:
        self._rest += data
        while not self.complete and (at := self._rest.find(self._mark, self._searched)) >= 0:
            self._parts.append(bytes(self._rest[:at]))
            del self._rest[: at + len(self._mark)]
            self._searched = 0
        self._searched = max(0, len(self._rest) - len(self._mark))

    def number(self) -> int:
        """Return the number that a greeting was answered with."""
        return int(self._parts[1])

    def completed(self) -> tuple[int, str, str]:
        """Return a command's status, stdout and stderr."""
        _, stdout, more = self._parts
        status, _, stderr = more.partition(b"\n")
        return int(status), _text(stdout), _text(stderr)

    @property
    def tail(self) -> str:
        """The end of what there is, for an error."""
        return _text(bytes(self._rest[-_TAIL:])) if self._parts else ""


def _text(data: bytes) -> str:
    return data.decode(errors="replace")
