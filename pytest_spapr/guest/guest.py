"""The guest: the operating system inside a machine, reached through ssh."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import TYPE_CHECKING

from pytest_spapr.deadline import Budgets, Deadline
from pytest_spapr.errors import MachineError, SshFailed
from pytest_spapr.guest.cpus import GuestCpus
from pytest_spapr.guest.memory import GuestMemory
from pytest_spapr.guest.pci import GuestPci
from pytest_spapr.guest.services import Drmgr, RtasErrd
from pytest_spapr.guest.ssh import Completed, Ssh
from pytest_spapr.timeline import Timeline

if TYPE_CHECKING:
    from testinfra.host import Host


class Guest:
    """A booted guest. Everything here goes through one ssh connection, made at the first command and again after a reboot.

    :ivar cpus: :ivar memory: :ivar pci: the guest's view of its hardware.
    :ivar rtas_errd: :ivar drmgr: the daemons behind PCI hotplug.
    """

    def __init__(
        self, ssh: Ssh, timeline: Timeline, budgets: Budgets, *, kernel_release: str, running: Callable[[], bool]
    ) -> None:
        self.kernel_release = kernel_release
        self.cpus = GuestCpus(self)
        self.memory = GuestMemory(self)
        self.pci = GuestPci(self)
        self.rtas_errd = RtasErrd(self)
        self.drmgr = Drmgr(self)
        self._ssh = ssh
        self._timeline = timeline
        self._budgets = budgets
        self._running = running

    @property
    def usable(self) -> bool:
        """Whether a command has a chance to be answered: QEMU lives and the machine runs."""
        __tracebackhide__ = True
        return self._timeline.ended is None and self._running()

    def run(self, command: str, *, seconds: float | None = None) -> Completed:
        """Run a shell command as root; about 0.1 s under TCG, 0.4 s more for the first. ``run(...).check()`` insists on status 0.

        :param seconds: give up after so long; default: the accelerator's budget for a command.
        :raises DeadlineExpired: it did not end in time; what it wrote is in the message.
        :raises SshFailed: the connection cannot be made or broke. :raises MachineDied: QEMU ended.
        :raises MachineError: the machine is paused, or its guest panicked or shut down, also meanwhile: no answer can come.
        """
        __tracebackhide__ = True
        if not self.usable:
            if self._timeline.ended is not None:
                raise self._timeline.ended
            raise MachineError(
                f"the machine is not running, the guest cannot answer `{command}`: if it was paused, continue it with machine.cont(); "
                "a guest that panicked or shut down needs machine.reset()"
            )
        try:
            if not self._ssh.connected:
                self._ssh.connect(Deadline(self._budgets.ssh))
            return self._ssh.run(command, Deadline(seconds if seconds is not None else self._budgets.command))
        except SshFailed as error:
            if self._running():
                raise
            raise MachineError(f"the machine stopped running during `{command}`: its guest panicked or shut down") from error

    def read(self, path: str) -> str:
        """Return the text of a small guest file, without surrounding white space.

        :raises CommandFailed: there is no such file.
        """
        return self.run(f"cat {path}").check().stdout.strip()

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
        self.run("echo 1 > /sys/devices/system/memory/memory0/online").check()

    def dmesg(self) -> str:
        """Return the kernel's log."""
        return self.run("dmesg").check().stdout

    def ssh_command(self) -> str:
        """Return what a person types to log in."""
        return self._ssh.command_line()

    def hang_up(self) -> None:
        """Say that the guest answers no more: whoever waits for it is told. From any thread, and never waits."""
        self._ssh.hang_up()

    def disconnect(self) -> None:
        """Drop the connection; the next command makes a new one."""
        self._ssh.close()

    def rest(self) -> None:
        """Let the guest come to rest before it is saved as a template."""

    def renew(self) -> None:
        """Give a clone's guest the host's time and random numbers of its own."""
