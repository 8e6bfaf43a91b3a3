"""A machine: one QEMU process joined with one guest, and everything observed about both on one timeline."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

from pytest_spapr.deadline import Budgets, Deadline
from pytest_spapr.errors import MachineError
from pytest_spapr.guest.boot import await_ready
from pytest_spapr.guest.console import ConsoleShell
from pytest_spapr.guest.guest import Guest
from pytest_spapr.guest.ssh import Ssh, forwarded_port
from pytest_spapr.images.disk import About, Overlay, OwnDisk, overlay_for
from pytest_spapr.images.store import GuestImage
from pytest_spapr.instance import Instance
from pytest_spapr.qemu.argv import READ_ONLY_RAM, Channels, MachineSpec, Ram, argv
from pytest_spapr.qemu.backdoor import Backdoor
from pytest_spapr.qemu.build import QemuBuild
from pytest_spapr.qemu.migration import STEP, move, move_through
from pytest_spapr.qemu.plugged import Plugged, plugged, require_same, settled
from pytest_spapr.qemu.process import QemuProcess
from pytest_spapr.qemu.snapshot import Snapshot, restore, save
from pytest_spapr.timeline import Branch, Lane, Record, Timeline

if TYPE_CHECKING:
    from pytest_spapr.qemu.qmp import Qmp, QmpLoop

_QUIT_SECONDS: Final = 5.0
# Before it, no decrementer travels (target/ppc: "Migrate DECR SPR"): the guest's timers, RCU with them, wait for ever (``images.renew``).
_MOVES_TIMERS: Final = (8, 2, 0)


@dataclass(frozen=True, kw_only=True, slots=True)
class Harness:
    """What all machines of a session share.

    :ivar build: the QEMU build. :ivar loop: the thread that all monitors live on. :ivar budgets: the backstops of every wait.
    :ivar keep: machines may outlive this process, see :meth:`Machine.release`; else they die with it, however it dies.
    :ivar backdoors: they have a second monitor.
    """

    build: QemuBuild
    loop: QmpLoop
    budgets: Budgets
    keep: bool = False
    backdoors: bool = False


class Machine:
    """A running pseries machine. Made by :meth:`start`, ended by :meth:`close`.

    :ivar spec: what was asked for. :ivar build: :ivar image: what it runs. :ivar timeline: all that was seen.
    :ivar qmp: QEMU's monitor. :ivar process: QEMU's process. :ivar about: what its guest was seen to be, of a disk of the user's own.
    :ivar at_end: called once QEMU is gone. :ivar at_move: called each time that another QEMU has the machine, which stands still.
    """

    def __init__(self, harness: Harness, spec: MachineSpec, image: GuestImage | None, timeline: Timeline) -> None:
        self.spec = spec
        self.build = harness.build
        self.image = image
        self.timeline = timeline
        self.budgets = harness.budgets
        self.at_end: list[Callable[[], None]] = []
        self.at_move: list[Callable[[], None]] = []
        self.qmp: Qmp
        self.process: QemuProcess
        self._harness = harness
        self._guest: Guest | None = None
        self._ram: Ram | None = None
        self._timers_stand = False
        self._instance: Instance
        self._overlay: Overlay | None = None
        self.about: About | None = None

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
    def shares_ram(self) -> bool:
        """Whether memory that the guest gives back to the host goes out of the template, and so out of all clones of it."""
        return self._ram is not None and self._ram.private and READ_ONLY_RAM not in self.build.features

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
            self._guest.renew(range(self.spec.vcpus))

    def await_ready(self, since: int) -> None:
        """Wait for the guest to say, after the cursor ``since``, that it is up; for a boot or a reboot.

        :raises BootFailed: see :meth:`boot`.
        """
        if isinstance(self.image, OwnDisk):
            self.about = self.guest.log_in(since)
        else:
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
        self._set_timers_going()

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
        self._timers_stand = False
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
        # -f: straight to the kernel, init has nothing to save.
        self.guest.leave("reboot -f")
        self._await_event("RESET", since)
        self.await_ready(since)

    def panic(self) -> None:
        """Have the guest's kernel panic, and wait until QEMU tells of it. It stands then, and what is pending stays so, until a reset.

        :raises DeadlineExpired: QEMU does not tell (``GUEST_PANICKED``).
        """
        since = self.timeline.mark()
        self.timeline.step("guest panic")
        self.guest.leave("echo c > /proc/sysrq-trigger")
        self._await_event("GUEST_PANICKED", since)

    def migrate(self, to: QemuBuild | None = None, *, through: Path | None = None) -> None:
        """Move the machine to another QEMU process, as a live migration does, and end the one that it leaves.

        Everything goes on there: the guest, what is plugged in, what is pending, and whatever a test has in its hands (this machine,
        its guest and monitor, devices and attempts, faults that a ``with`` block has set up). A paused machine stays paused. It stands
        still for the whole of the move, so that all its memory travels once: 0.8 s under TCG for 1 GiB, most of the time there twice.
        Before QEMU 8.2 the guest's timers would stand still for ever: they are set going again as a clone's are, by ``guest.renew()``.
        Devices and objects are those that QMP's ``device_add`` and ``object-add`` made, whoever sent them, with the ids and places that
        they have. Other backends that were made by QMP do not travel, nor does ssh: a command that runs is lost, a new one connects.

        :param to: the build of that process, which becomes the machine's; default: its own. The machine's type must be a versioned one
            that both builds have, and its CPU a model that means the same to both, as ``power9_v2.0`` does and ``power9`` does not.
        :param through: a file that is made, is to have all of the state before it is read, as in a save and a restore, and stays.
        :raises ConfigError: that build lacks the machine's type.
        :raises MachineError: a device cannot migrate, or is not known of; the machine goes on where it was.
        :raises LaunchFailed: the other QEMU did not start, e.g. since both would have one port of the host; so too.
        :raises MachineDied: QEMU ended meanwhile.
        """
        self.timeline.step(STEP)
        self._forget_connection()
        arrived = Branch(self.timeline)
        with self.paused() if self.running else nullcontext(), ExitStack() as on_failure:
            devices = settled(self.qmp, plugged(self.timeline.since(0, Lane.QMP, Lane.EVENT)))
            ram = self._ram and Ram(None)
            destination = self._launch(arrived, ram, devices, to)
            on_failure.callback(destination.close)
            require_same(self.qmp, destination.qmp)
            take = partial(move_through, through) if through else move
            take(self.timeline, self.qmp, destination.qmp, arrived, Deadline(self.budgets.move))
            # From here on the death of the destination is the machine's.
            arrived.merge()
            self._moved_to(destination, to or self.build)
            self._ram = ram
            on_failure.pop_all()

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
        self._instance.close()
        while self.at_end:
            self.at_end.pop()()

    def release(self) -> None:
        """Let go of QEMU without ending it: a person takes over by ssh. Needs a harness made with ``keep``."""
        self._forget_connection()
        self._instance.release()

    @contextmanager
    def _started(self, ram: Ram | None) -> Iterator[Self]:
        """Launch QEMU for the ``with`` block, in which the machine is brought up; where that fails, nothing stays behind."""
        self._ram = ram
        with overlay_for(self.image, self.at_end) as self._overlay:
            self._take_up(self._launch(self.timeline, ram))
        try:
            yield self
        except BaseException:
            self.close()
            raise

    def _launch(
        self, timeline: Timeline, ram: Ram | None, devices: Iterable[Plugged] | None = None, other: QemuBuild | None = None
    ) -> Instance:
        harness, build = self._harness, other or self.build

        def command(channels: Channels) -> list[str]:
            return argv(build, self.spec, self.image, channels, ram, devices, self._overlay)

        door = Backdoor.new(build) if harness.backdoors else None
        return Instance(command, build, harness.loop, timeline, self.budgets, keep=harness.keep, backdoor=door)

    def _take_up(self, instance: Instance) -> None:
        self._instance, self.qmp, self.process = instance, instance.qmp, instance.process

    def _moved_to(self, destination: Instance, build: QemuBuild) -> None:
        """Leave the QEMU of this machine, which has given all that it had to another one, and end it."""
        self._instance.change_places(destination)
        self._take_up(destination)
        self._timers_stand |= min(self.build.version, build.version) < _MOVES_TIMERS
        self.build = build
        if self._guest is not None and self.image is not None:
            self._guest.moved(*self._ways(self.image))
        for act in self.at_move:
            act()

    def _set_timers_going(self) -> None:
        """Have the timers of a guest that has moved go on, where they stand."""
        # One that has not come up yet takes no message, and its firmware needs no timers.
        if self._timers_stand and self._guest is not None and self._guest.usable and not self._guest.booting:
            # The last one first, and before anything is asked: where its removal was pending it begins now, and a CPU without timers
            # does not come to the end of it [Linux 6.1: hard LOCKUP in snooze_loop].
            supposed = range(len(self.qmp.execute("query-cpus-fast")))
            renewed = self._guest.renew(reversed(supposed))
            # One that came up only then may have been on its way up in the move.
            self._guest.renew(self._guest.cpus.online().difference(renewed))
        self._timers_stand = False

    def _meet_guest(self, image: GuestImage) -> Guest:
        guest = Guest(
            *self._ways(image),
            self.timeline,
            self.budgets,
            kernel_release=image.kernel_release,
            running=lambda: self.running,
        )
        self.timeline.listen(guest.hear)
        return guest

    def _ways(self, image: GuestImage) -> tuple[Ssh, ConsoleShell | None, Callable[[bytes], object]]:
        """Return the ways into the guest: ssh, its console shell, and what gives a clone the time."""
        # A key that was learnt is the machine's for good.
        known = image.host_key or (self._guest.host_key if self._guest else None)
        port = forwarded_port(self.qmp.hmp("info usernet"))
        ssh = Ssh(port=port, login=image.login, host_key=known, timeline=self.timeline)
        return ssh, self._instance.shell if image.console_shell else None, self._instance.tell_guest

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
