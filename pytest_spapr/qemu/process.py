"""The QEMU process: started so that it dies with us, watched until it ends."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from typing import Any, Final

from pytest_spapr.deadline import Deadline
from pytest_spapr.errors import DeadlineExpired, LaunchFailed, MachineDied
from pytest_spapr.qemu.bound import bound
from pytest_spapr.qemu.channels import LineReader
from pytest_spapr.qemu.flood import Flood
from pytest_spapr.qemu.trace import parse_drc_event
from pytest_spapr.timeline import Lane, Timeline

_LAST_WORDS: Final = 15
_JOIN_SECONDS: Final = 5.0
# TCG says this once for each of its vCPU's unsupported mitigations, and again at each reset: it is no news.
_NOISE: Final = "warning: TCG doesn't support requested feature"


class QemuProcess:
    """A QEMU process with its stderr on the timeline. Its end closes the timeline with the reason.

    Safe to make in any thread: the kernel sends the parent-death signal when the *thread* that forked ends (prctl(2),
    PR_SET_PDEATHSIG), so the thread that forks is the one that waits for QEMU's end. QEMU leads a session of its own: Ctrl-C in a
    terminal does not reach it, and what it left behind is killed with it, also where the command is a shell script that runs QEMU.

    :param argv: QEMU's command line. :param env: added to this process's environment.
    :param pass_fds: descriptors that QEMU inherits; the caller closes its own copies.
    :param dies_with_parent: QEMU is killed when this process ends, however that ends. False lets it live on, for a person to look at.
    :raises LaunchFailed: the program cannot be executed at all; one that starts and fails ends the timeline like any other.
    """

    def __init__(
        self,
        argv: Sequence[str],
        timeline: Timeline,
        *,
        env: Mapping[str, str],
        pass_fds: Sequence[int] = (),
        dies_with_parent: bool = True,
    ) -> None:
        self.argv = tuple(argv)
        self._timeline = timeline
        self._words = Flood(partial(timeline.record, Lane.STDERR))
        self._attached: set[int] = set()
        self._expected = False
        self._retired = False
        self._exited = threading.Event()
        # Held to reap and to kill: a reaped pid may belong to somebody else.
        self._reaping = threading.Lock()
        command = bound([*argv]) if dies_with_parent else [*argv]
        started: Future[subprocess.Popen[bytes]] = Future()
        self._watcher = threading.Thread(
            target=self._live, args=(command, env, tuple(pass_fds), started), name="spapr-qemu-exit", daemon=True
        )
        self._watcher.start()
        try:
            self._popen = started.result()
        except (OSError, ValueError, RuntimeError) as error:
            why = error.strerror if isinstance(error, OSError) else error
            raise LaunchFailed(f"cannot execute {self.command_line()}: {why}", None) from error

    @property
    def pid(self) -> int:
        return self._popen.pid

    @property
    def exit_status(self) -> int | None:
        """As ``Popen.returncode``; None while QEMU lives."""
        return self._popen.returncode if self._exited.is_set() else None

    def command_line(self) -> str:
        """Return the command line, quoted for a shell."""
        return shlex.join(self.argv)

    def last_words(self) -> list[str]:
        """Return the last lines that QEMU wrote to stderr."""
        return [record.text for record in self._timeline.since(0, Lane.STDERR)][-_LAST_WORDS:]

    def expect_exit(self) -> None:
        """Say that QEMU is about to be ended on purpose."""
        self._expected = True

    def retire(self) -> None:
        """Say that another QEMU has the machine now: this one's end is not the timeline's."""
        self._expected = self._retired = True

    def wait(self, deadline: Deadline) -> int:
        """Wait for QEMU's end and return its exit status.

        :raises DeadlineExpired: it lives on.
        """
        if not self._exited.wait(deadline.remaining):
            raise DeadlineExpired(f"QEMU (pid {self.pid}) to end", deadline.seconds)
        assert self._popen.returncode is not None
        return self._popen.returncode

    def kill(self) -> None:
        """Kill QEMU and wait until it is gone."""
        with self._reaping:
            if self._popen.returncode is None:
                self._expected = True
                _kill_session(self.pid)
        self.wait(Deadline(_JOIN_SECONDS))

    def close(self) -> None:
        """Kill QEMU if it still lives, and end the threads that read it. Safe to call twice."""
        self.kill()
        self._watcher.join(_JOIN_SECONDS)

    def _hear(self, line: str) -> None:
        drc_event = parse_drc_event(line)
        if drc_event is not None:
            if self._is_news(drc_event):
                self._timeline.record(Lane.DRC, line, drc_event)
        elif _NOISE not in line:
            self._words(line)

    def _is_news(self, drc_event: Mapping[str, Any]) -> bool:
        """Whether it is not the reset of a connector that never had a device: there are hundreds, where resets are traced at all."""
        if drc_event["event"] == "spapr_drc_attach":
            self._attached.add(drc_event["drc"])
        return drc_event["event"] != "spapr_drc_reset" or drc_event["drc"] in self._attached

    def _live(
        self, command: list[str], env: Mapping[str, str], pass_fds: tuple[int, ...], started: Future[subprocess.Popen[bytes]]
    ) -> None:
        """Be the thread that QEMU's life hangs on.

        Whoever waits for ``started`` waits without a limit: whatever goes wrong must get there, a NUL in the command line as much as a host
        that has no thread left.
        """
        try:
            popen = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                env={**os.environ, **env},
                pass_fds=pass_fds,
                start_new_session=True,
            )
            try:
                stderr = LineReader(_taken_stdout(popen), self._hear, name="qemu")
            except BaseException:
                _kill_session(popen.pid)
                popen.wait()
                raise
        except BaseException as error:  # noqa: BLE001 - it is raised where started is asked
            started.set_exception(error)
            return
        self._timeline.follow(stderr.catch_up)
        started.set_result(popen)
        self._bury(popen, stderr)

    def _bury(self, popen: subprocess.Popen[bytes], stderr: LineReader) -> None:
        """Wait for QEMU's end and tell it, last words first: they belong to the reason."""
        os.waitid(os.P_PID, popen.pid, os.WEXITED | os.WNOWAIT)
        # Whoever QEMU left behind would hold its stderr open.
        _kill_session(popen.pid)
        stderr.join(_JOIN_SECONDS)
        self._words.end()
        with self._reaping:
            status = popen.wait()
        words = self.last_words()
        how = exit_in_words(status)
        self._timeline.record(Lane.STDERR, f"QEMU (pid {popen.pid}) {how}")
        message = f"QEMU (pid {popen.pid}) was ended by the test, it {how}" if self._expected else f"QEMU (pid {popen.pid}) {how}"
        if not self._retired:
            self._timeline.end(MachineDied(message, status, words))
        self._exited.set()


def exit_in_words(status: int) -> str:
    """Return an exit status for people: ``was killed by SIGABRT`` or ``ended with status 1``."""
    if status >= 0:
        return f"ended with status {status}"
    try:
        return f"was killed by {signal.Signals(-status).name}"
    except ValueError:
        return f"was killed by signal {-status}"


def _kill_session(leader: int) -> None:
    """Kill a process group whose leader has not been reaped yet."""
    with suppress(ProcessLookupError):
        os.killpg(leader, signal.SIGKILL)


def _taken_stdout(popen: subprocess.Popen[bytes]) -> int:
    """Take the pipe from Popen, which would close it under the reading thread."""
    assert popen.stdout is not None
    with popen.stdout as pipe:
        return os.dup(pipe.fileno())
