"""rtas_errd and drmgr: the guest's user space that PCI and PHB hotplug depend on, and the ways to take it away."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from pytest_spapr.errors import GuestError
from pytest_spapr.guest.shell import Shell

# drmgr takes a POSIX lock (fcntl F_SETLK) on the whole of this file and tries again each second (powerpc-utils, common.c).
DRMGR_LOCK: Final = "/run/lock/dr_config_lock"

DRMGR_BEGAN: Final = re.compile(r"^drmgr: begin (?P<arguments>.*)$")
DRMGR_ENDED: Final = re.compile(r"^drmgr: end (?P<status>\d+)$")


class ErrdState(StrEnum):
    """What rtas_errd is doing."""

    RUNNING = "running"
    STOPPED = "stopped"
    ABSENT = "absent"


@dataclass(frozen=True, slots=True)
class LockHolder:
    """A process that holds drmgr's lock."""

    pid: int
    name: str


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
        # A signal takes effect a scheduling quantum later; the kernel has no event to wait for, and each look is 0.1 s of guest time.
        for _ in range(20):
            if (seen := self.state()) is state:
                return
        raise GuestError(f"rtas_errd is {seen}, expected {state}")


class Drmgr:
    """The tool that does the guest's part of a PCI or PHB hotplug, one at a time."""

    def __init__(self, shell: Shell) -> None:
        self._shell = shell

    def lock_holder(self) -> LockHolder | None:
        """Return who holds drmgr's lock now, drmgr itself included."""
        script = (
            f"inode=$(stat -c %i {DRMGR_LOCK}) && while read n type mode rw pid where rest; do "
            'if test "$type" = POSIX && test "${where##*:}" = "$inode"; then read name < /proc/$pid/comm; echo $pid $name; break; fi; '
            "done < /proc/locks"
        )
        found = self._shell.run(script).stdout.split()
        return LockHolder(int(found[0]), found[1]) if len(found) == 2 else None

    @contextmanager
    def lock_held(self) -> Iterator[None]:
        """Hold drmgr's lock inside the ``with`` block, so that every drmgr waits: rtas_errd gives it no time limit.

        The holder is sqlite3, which the image has because its exclusive transaction is a POSIX lock on part of the file; busybox
        knows only flock(2), which drmgr does not look at.
        """
        pid = "/run/drmgr-lock-holder.pid"
        self._shell.run(
            f"setsid sqlite3 {DRMGR_LOCK} 'BEGIN EXCLUSIVE' '.system sleep 2147483647' < /dev/null > /dev/null 2>&1 & "
            f"echo $! > {pid}"
        ).check()
        try:
            self._await_holder("sqlite3", present=True)
            yield
        finally:
            if self._shell.usable:
                # The whole process group: sqlite3 and its sleep.
                self._shell.run(f"kill -- -$(cat {pid}); rm {pid}").check()
                self._await_holder("sqlite3", present=False)

    def _await_holder(self, name: str, *, present: bool) -> None:
        for _ in range(20):
            holder = self.lock_holder()
            if (holder is not None and holder.name == name) is present:
                return
        raise GuestError(f"drmgr's lock is held by {holder}, expected {'' if present else 'not '}{name}")
