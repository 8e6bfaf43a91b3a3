"""A machine: one QEMU process joined with one guest, and everything observed about both on one timeline."""

from __future__ import annotations

import re
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

from pytest_spapr.deadline import Budgets, Deadline
from pytest_spapr.errors import BuildError, DeadlineExpired, LaunchFailed, MachineDied, MachineError
from pytest_spapr.guest.boot import await_ready
from pytest_spapr.guest.console import ConsoleShell
from pytest_spapr.guest.guest import Guest
from pytest_spapr.guest.kernel_log import kmsg_text
from pytest_spapr.guest.ssh import Ssh
from pytest_spapr.images.store import GuestImage
from pytest_spapr.qemu.argv import Channels, MachineSpec, Ram, argv
from pytest_spapr.qemu.build import QemuBuild
from pytest_spapr.qemu.channels import LineReader
from pytest_spapr.qemu.process import QemuProcess, exit_in_words
from pytest_spapr.qemu.snapshot import Snapshot, restore, save
from pytest_spapr.timeline import Lane, Record, Timeline

if TYPE_CHECKING:
    from pytest_spapr.qemu.qmp import Qmp, QmpLoop

_SSH_FORWARD: Final = re.compile(r"TCP\[HOST_FORWARD\]\s+\d+\s+127\.0\.0\.1\s+(?P<port>\d+)\s+\S+\s+22\b")
_QUIT_SECONDS: Final = 5.0
_JOIN_SECONDS: Final = 5.0
# They were written before the monitor greeted; this is for the thread that reads them.
_TRACE_SECONDS: Final = 5.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Harness:
    """What all machines of a session share.

    :ivar build: the QEMU build. :ivar loop: the thread that all monitors live on. :ivar budgets: the backstops of every wait.
    :ivar keep: machines may outlive this process, see :meth:`Machine.release`; else they die with it, however it dies.
    """

    build: QemuBuild
    loop: QmpLoop
    budgets: Budgets
    keep: bool = False


class Machine:
    """A running pseries machine. Made by :meth:`start`, ended by :meth:`close`.

    :ivar spec: what was asked for. :ivar build: :ivar image: what it runs. :ivar timeline: all that was seen.
    :ivar qmp: QEMU's monitor. :ivar process: QEMU's process. :ivar at_end: called once QEMU is gone.
    """

    def __init__(self, harness: Harness, spec: MachineSpec, image: GuestImage | None, timeline: Timeline) -> None:
        self.spec = spec
        self.build = harness.build
        self.image = image
        self.timeline = timeline
        self.budgets = harness.budgets
        self.at_end: list[Callable[[], None]] = []
        self.qmp: Qmp
        self.process: QemuProcess
        self._harness = harness
        self._guest: Guest | None = None
        self._shell: ConsoleShell
        self._service: socket.socket
        self._resources = ExitStack()

    @classmethod
    def start(
        cls,
        harness: Harness,
        spec: MachineSpec,
        image: GuestImage | None,
        timeline: Timeline,
        *,
        boot: bool = True,
        ram: Path | None = None,
    ) -> Self:
        """Start QEMU, and boot the guest unless told not to.

        Costs 0.3 s without a guest; with one, under TCG, 3 s (VOF) to 9 s (SLOF). On any error nothing stays behind.

        :param image: what to boot; None for a machine that stays in its firmware.
        :param boot: False leaves the machine at ``-S``: nothing has run yet, :meth:`boot` goes on from there.
        :param ram: the file that the guest's memory is to be, made if need be; for :meth:`save`.
        :raises LaunchFailed: QEMU did not start. :raises BootFailed: the guest did not come up.
        """
        with cls(harness, spec, image, timeline)._started(Ram(ram, private=False) if ram else None) as machine:
            if boot:
                machine.boot()
        return machine

    @classmethod
    def restore(cls, harness: Harness, spec: MachineSpec, image: GuestImage, timeline: Timeline, snapshot: Snapshot) -> Self:
        """Start a clone: a machine that goes on where another one was saved, on its own copy of that one's memory.

        Costs 0.1 s. Its guest has the host's time and random numbers of its own. On any error nothing stays behind.

        :param spec: :param image: as the machine had that was saved. :param snapshot: what was saved of it.
        :raises LaunchFailed: QEMU did not start. :raises MachineDied: QEMU could not make sense of the snapshot.
        :raises SpaprError: the guest does not answer.
        """
        with cls(harness, spec, image, timeline)._started(Ram(snapshot.ram, private=True)) as machine:
            restore(machine.qmp, timeline, snapshot.devices, Deadline(machine.budgets.launch))
            machine.wake()
        return machine

    def save(self) -> bytes:
        """Pause the machine and return the state of its devices. What is in its ``ram`` file then goes with it; 0.02 s.

        The machine is of no more use after it.

        :raises MachineError: a device of the machine cannot be saved.
        """
        self._forget_connection()
        self.stop()
        return save(self.qmp, self.timeline, Deadline(self.budgets.launch))

    @property
    def guest(self) -> Guest:
        """The booted guest.

        :raises MachineError: this machine has none, or it was not booted.
        """
        if self._guest is None:
            raise MachineError("this machine has no booted guest: it was started without an image or with boot=False")
        return self._guest

    @property
    def has_guest(self) -> bool:
        return self._guest is not None

    @property
    def running(self) -> bool:
        """Whether the vCPUs run, as QEMU says now."""
        __tracebackhide__ = True
        return self.status() == "running"

    def status(self) -> str:
        """Return QEMU's run state, e.g. ``running``, ``paused``, ``prelaunch``, ``guest-panicked``."""
        __tracebackhide__ = True
        return str(self.qmp.execute("query-status")["status"])

    def boot(self) -> None:
        """Let the machine run and wait until its guest is ready: all modules loaded, sshd and rtas_errd up.

        :raises BootFailed: the kernel panicked, the guest's init failed, or it was not ready within the boot budget.
        """
        since = self.timeline.mark()
        self.timeline.step("boot")
        self.cont()
        if self.image is not None:
            self._guest = self._meet_guest(self.image)
            self.await_ready(since)

    def wake(self) -> None:
        """Let a machine run that was given the state of another one, whose guest was up; 0.03 s.

        :raises SpaprError: the guest does not answer.
        """
        self.timeline.step("wake")
        self.cont()
        if self.image is not None:
            self._guest = self._meet_guest(self.image)
            self._guest.renew(self.spec.cpus)

    def await_ready(self, since: int) -> None:
        """Wait for the guest to say, after the cursor ``since``, that it is up; for a boot or a reboot.

        :raises BootFailed: see :meth:`boot`.
        """
        await_ready(self.timeline, since, Deadline(self.budgets.boot))

    def await_records(self, matches: Callable[[Record], bool], count: int, since: int, what: str) -> list[Record]:
        """Return the first ``count`` records after the cursor ``since`` that match.

        :param what: what they are, in words.
        :raises DeadlineExpired: fewer came within the budget of an unplug.
        """
        found: list[Record] = []

        def decide(record: Record) -> list[Record] | None:
            if matches(record):
                found.append(record)
            return found if len(found) == count else None

        return self.timeline.wait(decide, since=since, deadline=Deadline(self.budgets.unplug), what=f"{count} of {what}")

    def stop(self) -> None:
        """Pause the machine; the guest's time stands still."""
        self.timeline.step("stop")
        self.qmp.execute("stop")

    def cont(self) -> None:
        """Let the machine run on."""
        self.timeline.step("cont")
        self.qmp.execute("cont")

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Pause the machine inside the ``with`` block."""
        self.stop()
        try:
            yield
        finally:
            if self.timeline.ended is None:
                self.cont()

    def reset(self, *, wait: bool = True) -> None:
        """Reset the machine as its reset button does. Every unplug that is pending completes (``spapr_drc_reset_all``).

        :param wait: return when the guest is up again (a boot's cost), from whatever state; False returns when QEMU has done its
            part, and a machine that was paused or halted then still is.
        """
        since = self.timeline.mark()
        self.timeline.step("system_reset")
        self._forget_connection()
        self.qmp.execute("system_reset")
        self._await_event("RESET", since)
        if wait and self._guest is not None:
            # A machine that was halted or paused is not started by a reset (QEMU: back to prelaunch).
            if not self.running:
                self.cont()
            self.await_ready(since)

    def reboot(self) -> None:
        """Have the guest reboot itself, and wait until it is up again.

        :raises BootFailed: it does not come back.
        """
        since = self.timeline.mark()
        self.timeline.step("guest reboot")
        # Only when this connection's server process has ended: a reset that overtakes its answer leaves us waiting for it.
        # -f: straight to the kernel, init has nothing to save.
        reboot = "while test -d /proc/$PPID; do usleep 10000; done; reboot -f"
        self.guest.run(f'setsid sh -c "{reboot}" > /dev/null 2>&1 < /dev/null &').check()
        self._forget_connection()
        self._await_event("RESET", since)
        self.await_ready(since)

    def quit(self) -> None:
        """End QEMU by its monitor. No unplug completes: pending devices just end with it."""
        self.timeline.step("quit")
        self.process.expect_exit()
        self._forget_connection()
        self.qmp.execute("quit")
        self.process.wait(Deadline(_QUIT_SECONDS))

    def kill(self) -> None:
        """Kill QEMU at once."""
        self.process.kill()

    def close(self) -> None:
        """End QEMU if it still runs and give back everything. Safe to call twice; never waits for the guest."""
        self._forget_connection()
        self._resources.close()
        while self.at_end:
            self.at_end.pop()()

    def release(self) -> None:
        """Let go of QEMU without ending it: a person takes over by ssh. Needs a harness made with ``keep``."""
        self._forget_connection()
        self._resources.pop_all()

    @contextmanager
    def _started(self, ram: Ram | None) -> Iterator[Self]:
        """Launch QEMU for the ``with`` block, in which the machine is brought up; where that fails, nothing stays behind."""
        try:
            self._launch(ram)
            yield self
        except BaseException:
            self.close()
            raise

    def _launch(self, ram: Ram | None) -> None:
        with ExitStack() as made:
            ours, theirs = {}, {}
            for name in ("qmp", "console", "kernel", "service", "shell"):
                ours[name], theirs[name] = socket.socketpair()
                made.callback(theirs[name].close)
            channels = Channels(**{name: end.fileno() for name, end in theirs.items()})
            # Read by a thread of its own, as a descriptor of its own.
            self._service = ours["service"].dup()
            for name, hear in (("console", self._hear_console), ("kernel", self._hear_kernel), ("service", self._hear_service)):
                # The reader ends when QEMU closes its end; its last lines belong to the timeline.
                self._resources.callback(LineReader(ours[name].detach(), hear, name=name).join, _JOIN_SECONDS)
            self._shell = ConsoleShell(ours["shell"], self.timeline)
            self._resources.callback(self._shell.close)
            self._resources.callback(self._service.close)
            self._resources.callback(ours["qmp"].close)
            self.process = QemuProcess(
                argv(self.build, self.spec, self.image, channels, ram),
                self.timeline,
                env=self.build.env,
                pass_fds=tuple(channels),
                dies_with_parent=not self._harness.keep,
            )
            self._resources.callback(self.process.close)
        deadline = Deadline(self.budgets.launch)
        self.qmp = self._connect(ours["qmp"], deadline)
        self._resources.callback(self.qmp.close)
        self._require_traces()

    def _require_traces(self) -> None:
        """Verdicts rest on QEMU's trace of its DRCs: that of the boot core's is there before the monitor is."""

        def traced(record: Record) -> bool | None:
            return True if record.lane is Lane.DRC else None

        try:
            self.timeline.wait(traced, since=0, deadline=Deadline(_TRACE_SECONDS), what="QEMU's spapr_drc_* traces")
        except DeadlineExpired as error:
            raise BuildError(
                f"{self.build.name} ({self.build.version_text}) writes no spapr_drc_* trace events to stderr, which verdicts rest on. "
                "Configure it with --enable-trace-backends=log, which is QEMU's default."
            ) from error

    def _connect(self, sock: socket.socket, deadline: Deadline) -> Qmp:
        # Imported here: a test's collection imports this module, and has no use for a monitor.
        from pytest_spapr.qemu.qmp import Qmp

        try:
            return Qmp.connect(sock, self._harness.loop, self.timeline, deadline, seconds=self.budgets.qmp)
        except MachineDied as died:
            what = (
                f"QEMU did not start: {exit_in_words(died.exit_status or 0)}.\nIt was started as: {self.process.command_line()}"
            )
            raise LaunchFailed(what, died.exit_status, died.stderr) from died

    def _hear_console(self, line: str) -> None:
        self.timeline.record(Lane.CONSOLE, line)

    def _hear_kernel(self, line: str) -> None:
        # Lines that begin with a space carry a record's properties (" SUBSYSTEM=pci"), which nobody asked for.
        if not line.startswith(" "):
            self.timeline.record(Lane.KERNEL, kmsg_text(line))

    def _hear_service(self, line: str) -> None:
        self.timeline.record(Lane.SERVICE, line)

    def _meet_guest(self, image: GuestImage) -> Guest:
        listing = self.qmp.hmp("info usernet")
        forward = _SSH_FORWARD.search(listing)
        if forward is None:
            raise MachineError(f"QEMU forwards no port to the guest's ssh, `info usernet` says:\n{listing}")
        ssh = Ssh(port=int(forward["port"]), client_key=image.client_key, host_key=image.host_key, timeline=self.timeline)
        shell = self._shell if image.console_shell else None
        guest = Guest(
            ssh,
            shell,
            self._service.sendall,
            self.timeline,
            self.budgets,
            kernel_release=image.kernel_release,
            running=self._is_running,
        )
        self.timeline.listen(guest.hear)
        return guest

    def _is_running(self) -> bool:
        __tracebackhide__ = True
        return self.running

    def _await_event(self, name: str, since: int) -> Record:
        return self.timeline.wait(
            lambda record: record if record.event == name else None,
            since=since,
            deadline=Deadline(self.budgets.plug),
            what=f"QEMU's {name} event",
        )

    def _forget_connection(self) -> None:
        if self._guest is not None:
            self._guest.disconnect()
