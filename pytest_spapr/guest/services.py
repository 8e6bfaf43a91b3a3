"""rtas_errd and drmgr: the guest's user space that PCI and PHB hotplug depend on, and the ways to take it away."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from pytest_spapr.deadline import Deadline
from pytest_spapr.errors import GuestError
from pytest_spapr.guest.shell import Shell

# drmgr takes a POSIX lock (fcntl F_SETLK) on the whole of this file (powerpc-utils, common.c).
DRMGR_LOCK: Final = "/run/lock/dr_config_lock"

# The real one, not our shim around it, which tells how it ended.
_DRMGR: Final = "/usr/libexec/drmgr"
_KILLER: Final = (
    "setsid sh -c 'while test -e /sys/bus/pci/devices/{address}; do usleep 20000; done; for exe in /proc/[0-9]*/exe; do "
    "test $exe -ef {drmgr} && pid=${{exe%/exe}} && kill -KILL ${{pid#/proc/}}; done' > /dev/null 2>&1 &"
)
# Slot C0 has the machine's network card.
_IDENTIFY: Final = "-c pci -i -s C0"
# A signal or a lock takes effect a little later and the kernel has no event for it; each look is a guest command of 0.01 s.
_SETTLE_SECONDS: Final = 20.0

DRMGR_BEGAN: Final = re.compile(r"^drmgr: begin (?P<arguments>.*)$")
DRMGR_ENDED: Final = re.compile(r"^drmgr: end (?P<status>\d+) (?P<arguments>.*)$")


class ErrdState(StrEnum):
    """What rtas_errd is doing."""

    RUNNING = "running"
    STOPPED = "stopped"
    ABSENT = "absent"


@dataclass(frozen=True, slots=True)
class LockHolder:
    """A process that holds drmgr's lock. :ivar command: its command line."""

    pid: int
    command: str


class RtasErrd:
    """The daemon that hands PCI and PHB hotplug events to drmgr."""

    def __init__(self, shell: Shell) -> None:
        self._shell = shell

    def state(self) -> ErrdState:
        """Return what the daemon is doing."""
        found = self._shell.run("pid=$(pidof rtas_errd) && grep State: /proc/${pid%% *}/status").stdout
        if not found:
            return ErrdState.ABSENT
        return ErrdState.STOPPED if "T (stopped)" in found else ErrdState.RUNNING

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """Stop the daemon (SIGSTOP) inside the ``with`` block; it goes on afterwards and handles what came in meanwhile."""
        self._signal("STOP", ErrdState.STOPPED)
        try:
            yield
        finally:
            if self._shell.usable:
                self._signal("CONT", ErrdState.RUNNING)

    @contextmanager
    def killed(self) -> Iterator[None]:
        """Kill the daemon for the ``with`` block and start a new one after it, which reads the events that the kernel kept."""
        self._signal("KILL", ErrdState.ABSENT)
        try:
            yield
        finally:
            if self._shell.usable:
                self.start()

    def start(self) -> None:
        """Start the daemon, as the guest's init does, unless it is there already (after a reboot).

        :raises GuestError: it does not stay up.
        """
        if self.state() is ErrdState.RUNNING:
            return
        self._shell.run("rtas_errd_start").check()
        self._require(ErrdState.RUNNING)

    def _signal(self, name: str, then: ErrdState) -> None:
        self._shell.run(f"killall -{name} rtas_errd").check()
        self._require(then)

    def _require(self, state: ErrdState) -> None:
        deadline = Deadline(_SETTLE_SECONDS)
        while (seen := self.state()) is not state:
            if deadline.expired:
                raise GuestError(f"rtas_errd is {seen}, expected {state}")


class Drmgr:
    """The tool that does the guest's part of a PCI or PHB hotplug, one at a time."""

    def __init__(self, shell: Shell) -> None:
        self._shell = shell

    def remove(self, drc_index: int) -> None:
        """Run drmgr for a PCI slot as rtas_errd would: the way out of a removal that an earlier drmgr gave up; about 4 s.

        :param drc_index: the slot's DRC index. :raises CommandFailed: drmgr failed.
        """
        self._shell.run(f"drmgr -c pci -r -s {drc_index:#x} -n -V").check()

    def remove_phb(self, drc_index: int) -> None:
        """As :meth:`remove`, for a PHB and all that is behind it; about 10 s."""
        self._shell.run(f"drmgr -c phb -r -s {drc_index:#x}").check()

    def kill_midway(self, address: str) -> None:
        """Have the drmgr that removes a PCI function killed when it has taken it out of sysfs, 3 s before it would tell the hypervisor.

        A process in the guest waits for that moment; this returns at once.

        :param address: the function's address in the guest.
        """
        self._shell.run(_KILLER.format(address=address, drmgr=_DRMGR)).check()

    def lock_holder(self) -> LockHolder | None:
        """Return who holds drmgr's lock now; most often a drmgr at work."""
        script = (
            f"inode=$(stat -c %i {DRMGR_LOCK}) && while read n type mode rw pid where rest; do "
            'if test "$type" = POSIX && test "${where##*:}" = "$inode"; then echo $pid $(tr "\\0" " " < /proc/$pid/cmdline); break; fi; '
            "done < /proc/locks"
        )
        pid, _, command = self._shell.run(script).stdout.strip().partition(" ")
        return LockHolder(int(pid), command) if command else None

    @contextmanager
    def lock_held(self) -> Iterator[None]:
        """Hold drmgr's lock inside the ``with`` block: every other drmgr gives up at once (1.3.10, as rtas_errd starts it).

        The holder is a drmgr that somebody left at its prompt: ``-i`` lights a slot's indicator and waits for a key, with the lock.
        """
        fifo = "/run/drmgr-prompt"
        # Not our shim in the guest image, whose log speaks of the drmgr that rtas_errd runs.
        holder = f"exec 9<>{fifo}; exec $(command -v {_DRMGR} drmgr | head -n 1) {_IDENTIFY} <&9"
        self._shell.run(f"mkfifo {fifo} && {{ setsid sh -c '{holder}' > /dev/null 2>&1 & }}").check()
        try:
            self._await_holder(held=True)
            yield
        finally:
            if self._shell.usable:
                self._shell.run(f"echo > {fifo}; rm {fifo}").check()
                self._await_holder(held=False)

    def _await_holder(self, *, held: bool) -> None:
        deadline = Deadline(_SETTLE_SECONDS)
        while True:
            holder = self.lock_holder()
            if (holder is not None and _IDENTIFY in holder.command) is held:
                return
            if deadline.expired:
                raise GuestError(f"drmgr's lock is held by {holder}, expected {'' if held else 'not '}`drmgr {_IDENTIFY}`")
