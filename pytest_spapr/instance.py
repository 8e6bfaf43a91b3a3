"""One QEMU process with all of its channels: what a machine runs in, and leaves for another one when it migrates."""

from __future__ import annotations

import socket
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING, Final, Protocol

from pytest_spapr.deadline import Budgets, Deadline
from pytest_spapr.errors import BuildError, DeadlineExpired, LaunchFailed, MachineDied
from pytest_spapr.guest.console import ConsoleShell
from pytest_spapr.guest.streams import listeners
from pytest_spapr.guest.trouble import STAMP
from pytest_spapr.qemu.argv import Channels
from pytest_spapr.qemu.backdoor import Backdoor
from pytest_spapr.qemu.channels import LineReader
from pytest_spapr.qemu.flood import Flood
from pytest_spapr.qemu.process import QemuProcess, exit_in_words
from pytest_spapr.timeline import Lane, Record, Timeline

if TYPE_CHECKING:
    from pytest_spapr.qemu.qmp import Qmp, QmpLoop

_JOIN_SECONDS: Final = 5.0
# They were written before the monitor greeted; this is for the thread that reads them.
_TRACE_SECONDS: Final = 5.0


class Program(Protocol):
    """What is started: a QEMU build, or another QEMU."""

    @property
    def name(self) -> str: ...
    @property
    def version_text(self) -> str: ...
    @property
    def env(self) -> Mapping[str, str]: ...


class Instance:
    """A QEMU that was started and greeted. Ended by :meth:`close`.

    :param command: makes its command line of the descriptors that it inherits. :param timeline: all that it says goes there.
    :param keep: it may outlive this process; else it dies with it, however that dies.
    :param traces: whether it has connectors, which it must trace. :param backdoor: where it listens for people, too.
    :ivar qmp: its monitor. :ivar process: its process. :ivar shell: the guest's console shell.
    :raises LaunchFailed: it did not start. :raises BuildError: it does not trace its connectors. Nothing stays behind then.
    """

    def __init__(
        self,
        command: Callable[[Channels], list[str]],
        build: Program,
        loop: QmpLoop,
        timeline: Timeline,
        budgets: Budgets,
        *,
        keep: bool,
        traces: bool = True,
        backdoor: Backdoor | None = None,
    ) -> None:
        self.timeline = timeline
        self.backdoor = backdoor
        self.qmp: Qmp
        self.process: QemuProcess
        self.shell: ConsoleShell
        self._service: socket.socket
        self._readers: dict[str, LineReader] = {}
        # What the guest's kernel says there is what explains a guest that does nothing else any more.
        self._console = Flood(partial(timeline.record, Lane.CONSOLE), also=STAMP)
        self._resources = ExitStack()
        try:
            monitor = self._launch(command, build.env, keep=keep)
            self.qmp = self._connect(monitor, loop, Deadline(budgets.launch), budgets.qmp)
            # Not the method: another monitor may stand there by then, see :meth:`change_places`.
            self._resources.callback(lambda: self.qmp.close())
            if traces:
                self._require_traces(build)
        except BaseException:
            self.close()
            raise

    def tell_guest(self, message: bytes) -> None:
        """Write to the guest's service console."""
        self._service.sendall(message)

    def change_places(self, successor: Instance) -> None:
        """Let whoever has this one's monitor speak to the successor, and its timeline end with it."""
        self.process.retire()
        self.qmp.swap(successor.qmp)
        self.qmp, successor.qmp = successor.qmp, self.qmp
        for reader in self._readers.values():
            reader.keep_rest()
        self.close()
        # A line that the guest has begun here, and will end there.
        for name, reader in self._readers.items():
            successor._readers[name].begin_with(reader.rest)

    def close(self) -> None:
        """End QEMU if it still runs and give back everything. Safe to call twice."""
        self._resources.close()

    def release(self) -> None:
        """Let go of QEMU without ending it."""
        self._resources.pop_all()

    def _launch(self, command: Callable[[Channels], list[str]], env: Mapping[str, str], *, keep: bool) -> socket.socket:
        """Start QEMU and return our end of its monitor."""
        with ExitStack() as made:
            ours, theirs = {}, {}
            for name in Channels._fields:
                ours[name], theirs[name] = socket.socketpair()
                made.callback(theirs[name].close)
            channels = Channels(**{name: end.fileno() for name, end in theirs.items()})
            # Read by a thread of its own, as a descriptor of its own.
            self._service = ours["service"].dup()
            self._resources.callback(self._console.end)
            hearers: dict[str, Callable[[str], None]] = {**listeners(self.timeline), "console": self._console}
            for name, hear in hearers.items():
                reader = self._readers[name] = LineReader(ours[name].detach(), hear, name=name)
                self.timeline.follow(reader.catch_up)
                # The reader ends when QEMU closes its end; its last lines belong to the timeline.
                self._resources.callback(reader.join, _JOIN_SECONDS)
            self.shell = ConsoleShell(ours["shell"], self.timeline)
            self._resources.callback(self.shell.close)
            self._resources.callback(self._service.close)
            self._resources.callback(ours["qmp"].close)
            line = command(channels)
            if self.backdoor is not None:
                line += self.backdoor.arguments
                self._resources.callback(self.backdoor.close)
            self.process = QemuProcess(line, self.timeline, env=env, pass_fds=tuple(channels), dies_with_parent=not keep)
            self._resources.callback(self.process.close)
        return ours["qmp"]

    def _connect(self, sock: socket.socket, loop: QmpLoop, deadline: Deadline, seconds: float) -> Qmp:
        # Imported here: a test's collection imports this module, and has no use for a monitor.
        from pytest_spapr.qemu.qmp import Qmp

        try:
            return Qmp.connect(sock, loop, self.timeline, deadline, seconds=seconds)
        except MachineDied as died:
            what = (
                f"QEMU did not start: {exit_in_words(died.exit_status or 0)}.\nIt was started as: {self.process.command_line()}"
            )
            raise LaunchFailed(what, died.exit_status, died.stderr) from died

    def _require_traces(self, build: Program) -> None:
        """Verdicts rest on QEMU's trace of its DRCs: that of the boot core's is there before the monitor is."""

        def traced(record: Record) -> bool | None:
            return True if record.lane is Lane.DRC else None

        try:
            self.timeline.wait(traced, since=0, deadline=Deadline(_TRACE_SECONDS), what="QEMU's spapr_drc_* traces")
        except DeadlineExpired as error:
            raise BuildError(
                f"{build.name} ({build.version_text}) writes no spapr_drc_* trace events to stderr, which verdicts rest on. "
                "Configure it with --enable-trace-backends=log, which is QEMU's default."
            ) from error
