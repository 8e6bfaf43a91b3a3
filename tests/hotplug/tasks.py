"""Tasks in the guest that keep one of its CPUs busy.

Asked of the console shell, and by its builtins alone: where a task keeps a CPU from all others, a new process may be put on it and stay.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from pytest_spapr import Guest

#: Ticks (1/100 s) of user time that prove a task to be at work.
_AT_WORK = 5


@dataclass(frozen=True)
class Task:
    """A busy task. :ivar pid: in the guest."""

    guest: Guest
    pid: int

    def _stat(self) -> list[str]:
        return self.guest.ask(f"read -r line < /proc/{self.pid}/stat; echo $line").check().stdout.split()

    @property
    def cpu(self) -> int:
        """The CPU that it runs on, or ran on last."""
        return int(self._stat()[38])

    @property
    def ticks(self) -> int:
        """What it has run in user mode, in 1/100 s."""
        return int(self._stat()[13])

    def await_work(self, more: int = _AT_WORK) -> None:
        """Wait until it has run for so many ticks more."""
        until = self.ticks + more
        script = f"set --; until test ${{14:-0}} -ge {until}; do read -r line < /proc/{self.pid}/stat; set -- $line; done"
        self.guest.ask(script).check()


def keep_busy(guest: Guest) -> None:
    """Have no CPU of the guest idle from now on."""
    for cpu in guest.cpus.online():
        _at_work(_start(guest, cpu), cpu)


@contextmanager
def busy(guest: Guest, cpu: int, *, command: str = "") -> Iterator[Task]:
    """Have a task that is pinned to a CPU keep it busy inside the ``with`` block.

    :param command: what to start it by, e.g. ``chrt -f 50``. :raises AssertionError: it does not run there.
    """
    task = _start(guest, cpu, command)
    try:
        _at_work(task, cpu)
        yield task
    finally:
        if guest.usable:
            guest.ask(f"kill -KILL {task.pid}").check()


def _start(guest: Guest, cpu: int, command: str = "") -> Task:
    # It says so itself when it is no longer taskset or chrt, whose own work is not what is wanted.
    script = "echo > /run/busy.$$; while :; do :; done"
    started = guest.ask(f"taskset {1 << cpu:x} {command} sh -c '{script}' > /dev/null 2>&1 & echo $!").check()
    return Task(guest, int(started.stdout))


def _at_work(task: Task, cpu: int) -> None:
    task.guest.ask(f"until test -e /run/busy.{task.pid}; do :; done").check()
    task.await_work()
    assert task.cpu == cpu
