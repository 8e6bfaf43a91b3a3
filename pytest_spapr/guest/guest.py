"""The guest: the operating system inside a machine, reached through ssh and its console shell."""

from __future__ import annotations

import contextlib
import itertools
import re
import time
from collections.abc import Callable, Iterable
from functools import cached_property
from secrets import token_bytes
from typing import TYPE_CHECKING, Final

from pytest_spapr.deadline import Budgets, Deadline
from pytest_spapr.errors import DeadlineExpired, GuestError, MachineError, ShellFailed, SshFailed
from pytest_spapr.guest.boot import READY, STARTED, await_login, await_ready
from pytest_spapr.guest.completed import Completed
from pytest_spapr.guest.console import ConsoleShell, ShellAbsent
from pytest_spapr.guest.cpus import GuestCpus
from pytest_spapr.guest.memory import GuestMemory
from pytest_spapr.guest.pci import GuestPci
from pytest_spapr.guest.services import Drmgr, RtasErrd
from pytest_spapr.guest.ssh import Ssh
from pytest_spapr.guest.strange import prepare
from pytest_spapr.guest.trouble import troubles
from pytest_spapr.images.renew import ABSENT, CPUS, DONE, FAILED, SEED, message
from pytest_spapr.timeline import Lane, Record, Timeline

if TYPE_CHECKING:
    from testinfra.host import Host

    from pytest_spapr.images.disk import About

_REST_WINDOW: Final = 0.2
# Two windows in a row, of fifty at most, in which the CPUs did next to nothing (/proc/uptime: the sum of their idle seconds).
_REST: Final = """awk '
function idle() {{ getline < "/proc/uptime"; close("/proc/uptime"); return $2 }}
BEGIN {{
    for (windows = 0; windows < 50 && quiet < 2; windows++) {{
        before = idle()
        system("usleep {microseconds}")
        quiet = idle() - before >= {idle:.2f} ? quiet + 1 : 0
    }}
}}'"""
_HALTS: Final = ("GUEST_PANICKED", "SHUTDOWN")
_SHELL_ENDED: Final = re.compile(r"^init: console shell (?P<pid>\d+) ended$")


class Guest:
    """A booted guest.

    A test's commands go through one ssh connection, made at the first of them and again after a reboot: each is a process of its own
    with streams of its own. What the plugin itself asks goes through the console shell, where the image has one.

    :ivar cpus: :ivar memory: :ivar pci: the guest's view of its hardware.
    :ivar rtas_errd: :ivar drmgr: the daemons behind PCI hotplug.
    """

    def __init__(
        self,
        ssh: Ssh,
        console: ConsoleShell | None,
        renewal: Callable[[bytes], object],
        timeline: Timeline,
        budgets: Budgets,
        *,
        kernel_release: str,
        running: Callable[[], bool],
    ) -> None:
        self.kernel_release = kernel_release
        own = _OwnShell(self)
        self.cpus = GuestCpus(own)
        self.memory = GuestMemory(own)
        self.pci = GuestPci(own)
        self.rtas_errd = RtasErrd(own)
        self.drmgr = Drmgr(own)
        self._own = own
        self._ssh = ssh
        self._console = console
        self._booting: int | None = None
        self._renewal = renewal
        self._timeline = timeline
        self._budgets = budgets
        self._running = running

    @property
    def usable(self) -> bool:
        """Whether a command has a chance to be answered: QEMU lives and the machine runs."""
        __tracebackhide__ = True
        return self._timeline.ended is None and self._running()

    @property
    def booting(self) -> bool:
        """Whether it was reset, and has not said since that it is up."""
        since = self._booting
        return since is not None and not any(record.text == READY for record in self._timeline.since(since, Lane.SERVICE))

    def run(self, command: str, *, seconds: float | None = None) -> Completed:
        """Run a shell command as root; 0.02 s under TCG, 0.25 s for the first in a new clone. ``run(...).check()`` insists on status 0.

        :param seconds: give up after so long; default: the accelerator's budget for a command.
        :raises DeadlineExpired: it did not end in time; what it wrote is in the message.
        :raises SshFailed: the connection cannot be made or broke. :raises MachineDied: QEMU ended.
        :raises MachineError: the machine is paused, or its guest panicked or shut down, also meanwhile: no answer can come.
        """
        __tracebackhide__ = True
        return self._answered(command, lambda: self._run_by_ssh(command, seconds))

    def ask(self, command: str) -> Completed:
        """Run a shell command of the plugin's own as root: what is asked of every guest, and what sets up faults; 0.01 s under TCG.

        Through the console shell where there is one that answers, else as :meth:`run`. It shares its terminal with nobody, and what it
        leaves in the background must have its output elsewhere.

        A guest that was reset is waited for.

        :raises ShellFailed: the console shell was killed, or the guest was reset, meanwhile. :raises BootFailed: it does not come
            back from a reset. :raises: else as :meth:`run`.
        """
        __tracebackhide__ = True
        return self._answered(command, lambda: self._run_by_console(command))

    def read(self, path: str) -> str:
        """Return the text of a small guest file, without surrounding white space.

        :raises CommandFailed: there is no such file.
        """
        return self._own.read(path)

    @cached_property
    def host(self) -> Host:
        """A testinfra ``Host`` over the same connection: ``guest.host.file("/proc/cmdline").content_string``."""
        # Imported here: testinfra costs 34 ms, and most tests do without.
        from pytest_spapr.guest.host import testinfra_host

        return testinfra_host(self.run)

    def settle(self) -> None:
        """Return when the kernel has finished the CPU or memory hotplug that it is working on, rollback included.

        A barrier, not a wait: onlining block 0 (which is online) takes ``device_hotplug_lock``, which the pseries hotplug worker
        holds from its first log line to its last (dlpar_cpu and dlpar_memory, lock_device_hotplug).
        """
        self.ask("echo 1 > /sys/devices/system/memory/memory0/online").check()

    def hotplug_interrupts(self) -> int:
        """Return how many hotplug events QEMU has announced to the kernel (``RAS_HOTPLUG``); 0.02 s.

        None that was announced before this call is missing: each CPU has run a process since, for which it takes its interrupts.
        """
        while True:
            online = self.cpus.online()
            masks = " ".join(f"{1 << cpu:x}" for cpu in sorted(online))
            ran = self.ask(f"for mask in {masks}; do taskset $mask true || exit; done; grep RAS_HOTPLUG /proc/interrupts")
            # A CPU that went meanwhile has left its interrupts to the others.
            if ran.status == 0 or self.cpus.online() == online:
                break
        counted = ran.check().stdout.split()
        return sum(int(count) for count in itertools.takewhile(str.isdigit, counted[1:]))

    def dmesg(self) -> str:
        """Return the kernel's log."""
        return self.run("dmesg").check().stdout

    def ssh_command(self) -> str:
        """Return what a person types to log in."""
        return self._ssh.command_line()

    def hear(self, record: Record) -> None:
        """Take note of what ends a wait for the guest's answer: its halt, its reset, its console shell's end. Never waits."""
        # QEMU keeps a halted machine as it is, its network included: only a deadline would end the wait for an answer.
        if record.event in _HALTS:
            self._ssh.hang_up()
            if self._console:
                self._console.hang_up()
        elif self._console and (record.event == "RESET" or (record.lane is Lane.SERVICE and record.text == STARTED)):
            # The second without the first: it has booted another kernel by itself (kexec).
            self._booting = record.seq
            self._console.forget()
        elif self._console and record.lane is Lane.SERVICE and (end := _SHELL_ENDED.match(record.text)):
            self._console.ended(int(end["pid"]))

    def moved(self, ssh: Ssh, console: ConsoleShell | None, renewal: Callable[[bytes], object]) -> None:
        """Say that the guest is to be reached through another QEMU from now on. The parameters are as when it was made."""
        self._ssh.close()
        self._ssh, self._console, self._renewal = ssh, console, renewal

    def taken_back(self) -> None:
        """Say that it is up again as it once was: a reset since then has not happened to it."""
        self._booting = None

    @property
    def host_key(self) -> str | None:
        """The guest's ssh host key, if it is known by now."""
        return self._ssh.host_key

    def log_in(self, since: int) -> About:
        """Wait until a guest that is not ours lets us in, after the cursor ``since``, set it up, and return what it is.

        :raises BootFailed: it does not come up, or lets nobody in. :raises GuestError: it cannot be used.
        """
        deadline = Deadline(self._budgets.installed)
        await_login(self._ssh, self._timeline, since, deadline)
        return prepare(self, deadline)

    def disconnect(self) -> None:
        """Drop the ssh connection; the next command makes a new one."""
        self._ssh.close()

    def leave(self, command: str) -> None:
        """Have the guest run a command that ends it, or its ssh server, once this connection is gone: no answer is overtaken by it.

        :raises: as :meth:`run`; what becomes of the command is not known.
        """
        # The server's process for this connection is the shell's parent.
        gone = "while test -d /proc/$PPID; do usleep 10000; done"
        self.run(f'setsid sh -c "{gone}; {command}" > /dev/null 2>&1 < /dev/null &').check()
        self.disconnect()

    def rest(self) -> None:
        """Return when the guest has been idle for a while, for it to be saved as a template; 0.6 s, at most 10 s.

        What its boot leaves to the kernel's workers takes 0.2 s under TCG, which each clone would spend first.
        """
        self.ask(_REST.format(idle=0.9 * _REST_WINDOW * len(self.cpus.online()), microseconds=int(_REST_WINDOW * 1e6))).check()

    def renew(self, cpus: Iterable[int] = (0,)) -> frozenset[int]:
        """Give a clone's guest the host's time, timers that go on, and random numbers of its own; 0.03 s.

        The time is late by less than that. Where this returns, the kernel's random generator has been seeded anew from the host's:
        whatever asks it from then on, a new process's layout included, gets what no other clone gets.

        :param cpus: those that have timers to go on, in this order; one that is not online has none.
        :returns: those that were online. The time and the random numbers are given whether or not one is.
        :raises GuestError: the image cannot do it, or its kernel refused. :raises DeadlineExpired: no answer.
        """
        if self._console is None:
            raise GuestError("the guest's image has no console shell, and a clone of it cannot be given the time and entropy")
        self._timeline.step("renew the guest's time and entropy")
        deadline = Deadline(self._budgets.command)
        renewed: set[int] = set()
        for cpu in (cpu for cpu in cpus if cpu < CPUS):
            since = self._timeline.mark()
            with contextlib.suppress(OSError):
                # Of a QEMU that has died: told by the wait.
                self._renewal(message(*divmod(time.time_ns(), 1_000_000_000), cpu, token_bytes(SEED)))
            said = self._timeline.wait(
                lambda record: record.text if record.lane is Lane.SERVICE and record.text in (DONE, ABSENT, FAILED) else None,
                since=since,
                deadline=deadline,
                what="the guest to take the host's time and entropy",
            )
            if said == FAILED:
                raise GuestError("the guest's kernel refused the host's time or entropy")
            if said == DONE:
                renewed.add(cpu)
        return frozenset(renewed)

    def _answered(self, command: str, run: Callable[[], Completed]) -> Completed:
        """Return what a command did, if an answer can come; say why not otherwise."""
        __tracebackhide__ = True
        if not self.usable:
            if self._timeline.ended is not None:
                raise self._timeline.ended
            raise MachineError(
                f"the machine is not running, the guest cannot answer `{command}`: if it was paused, continue it with machine.cont(); "
                "a guest that panicked or shut down needs machine.reset()"
            )
        try:
            return run()
        except (SshFailed, ShellFailed, DeadlineExpired) as error:
            if isinstance(error, DeadlineExpired) or self._running():
                for trouble in troubles(self._timeline.since()):
                    error.add_note(f"The guest's kernel has said: {trouble}")
                raise
            raise MachineError(f"the machine stopped running during `{command}`: its guest panicked or shut down") from error

    def _run_by_ssh(self, command: str, seconds: float | None = None) -> Completed:
        if not self._ssh.connected:
            self._ssh.connect(Deadline(self._budgets.ssh))
        return self._ssh.run(command, Deadline(seconds if seconds is not None else self._budgets.command))

    def _run_by_console(self, command: str) -> Completed:
        if self._console is not None:
            self._await_shell()
            try:
                return self._console.run(command, Deadline(self._budgets.command))
            except ShellAbsent:
                # Told on the timeline when it was lost; this command was not sent.
                pass
        return self._run_by_ssh(command)

    def _await_shell(self) -> None:
        """Wait until the guest is up again, if it was reset: before, nobody listens on its console."""
        if (since := self._booting) is not None:
            await_ready(self._timeline, since, Deadline(self._budgets.boot))
            if self._booting == since:
                self._booting = None


class _OwnShell:
    """The shell of the guest's parts."""

    def __init__(self, guest: Guest) -> None:
        self._guest = guest

    @property
    def usable(self) -> bool:
        return self._guest.usable

    def run(self, command: str) -> Completed:
        return self._guest.ask(command)

    def read(self, path: str) -> str:
        return self.run(f"cat {path}").check().stdout.strip()
