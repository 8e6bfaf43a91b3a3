"""Deadlines, and the one table of time budgets.

A blocking call takes a :class:`Deadline`, never bare seconds, so that nested waits share one end. The budgets are backstops:
a wait ends with its event. They scale with what changes guest speed by an order of magnitude: the accelerator, and a host that is an
emulated machine itself.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import cache
from typing import Final

from pytest_spapr.errors import DeadlineExpired

Clock = Callable[[], float]


class WorkingTime:
    """A monotonic clock in seconds that stands still while a person is waited for: at a debugger's prompt. Safe for all threads.

    :param clock: what it goes by; tests pass their own.
    """

    def __init__(self, clock: Clock = time.monotonic) -> None:
        self._clock = clock
        # What is left out of the clock's time, and since when it stands: one value, so that readers need no lock.
        self._state: tuple[float, float | None] = (0.0, None)

    def __call__(self) -> float:
        lost, stopped = self._state
        return (self._clock() if stopped is None else stopped) - lost

    def stop(self) -> None:
        """Stand still. A second call does nothing."""
        lost, stopped = self._state
        if stopped is None:
            self._state = (lost, self._clock())

    def go(self) -> None:
        """Go on from where it stands. Does nothing to a clock that goes."""
        lost, stopped = self._state
        if stopped is not None:
            self._state = (lost + self._clock() - stopped, None)


#: What deadlines go by. One for the process: its threads wait for each other, and a debugger holds up the one that all wait for.
working_time: Final = WorkingTime()


class Deadline:
    """A point in time after which waiting is given up.

    :param seconds: how long from now, in seconds; 0 or less has expired already.
    :param clock: a monotonic clock in seconds; tests pass their own.
    """

    def __init__(self, seconds: float, *, clock: Clock = working_time) -> None:
        self.seconds = seconds
        self._clock = clock
        self._end = clock() + seconds

    @property
    def remaining(self) -> float:
        """Seconds left, never negative."""
        return max(0.0, self._end - self._clock())

    @property
    def expired(self) -> bool:
        return self._clock() >= self._end

    def require(self, what: str, detail: str = "") -> float:
        """Return the remaining seconds.

        :raises DeadlineExpired: when none are left; ``what`` names what was waited for.
        """
        remaining = self.remaining
        if remaining <= 0:
            raise DeadlineExpired(what, self.seconds, detail)
        return remaining

    def sooner(self, seconds: float) -> Deadline:
        """Return a deadline ``seconds`` from now, or this one if it ends before."""
        return Deadline(min(seconds, self.remaining), clock=self._clock)

    def __repr__(self) -> str:
        return f"<Deadline {self.remaining:.1f} of {self.seconds:.1f} s left>"


@dataclass(frozen=True, kw_only=True, slots=True)
class Budgets:
    """Seconds allowed for each kind of wait under one accelerator.

    :ivar launch: QEMU's start until its monitor answers.
    :ivar boot: from ``cont`` until the guest says that it is ready (SLOF included).
    :ivar installed: the same for a disk of the user's own, until its ssh lets us in and its services are up.
    :ivar ssh: connection and authentication.
    :ivar command: one guest command.
    :ivar qmp: one QMP command.
    :ivar plug: from ``device_add`` until the guest has configured the device.
    :ivar move: all of a machine's state to another QEMU: that of a guest which has booted with an NVDIMM takes 8 s on an idle host.
    :ivar unplug: from ``device_del`` to an outcome, if the evidence is not complete before (drmgr sleeps 3 s for a PCI device).
    """

    launch: float
    boot: float
    installed: float = 1200
    ssh: float
    command: float
    qmp: float
    plug: float
    unplug: float
    move: float = 180


# TCG on a loaded two-core host was seen six times slower than idle (a boot of 53 s, not 9 s): a backstop must not be what fails.
_TCG = Budgets(launch=30, boot=180, ssh=60, command=60, qmp=30, plug=60, unplug=90)
_KVM = Budgets(launch=15, boot=60, installed=300, ssh=20, command=20, qmp=10, plug=20, unplug=30)


# A piece of work takes an x86 of these years 1 ms, and a pseries machine that TCG emulates on it 14 to 26 ms; others get as much as this.
_ROUNDS = 20_000
_USUAL = 0.003
# Beyond it something else is wrong than a slow host.
_SLOWEST = 30.0


def slowness(work: Callable[[], float]) -> float:
    """Return how many times slower than the slowest usual one a host is: 1 on a real processor, 5 to 10 on one that TCG emulates.

    :param work: does a piece of work, and returns the seconds of CPU time that it took: a busy host is no slow one.
    """
    return min(max(1.0, min(work() for _ in range(3)) / _USUAL), _SLOWEST)


def _work() -> float:
    began = time.thread_time()
    total = 0
    for number in range(_ROUNDS):
        total += number * number % 7
    return time.thread_time() - began


@cache
def host_slowness() -> float:
    """Return the :func:`slowness` of this host, measured once: 5 ms on a usual one."""
    return slowness(_work)


def budgets(accelerator: str, times: float | None = None) -> Budgets:
    """Return the time budgets for ``tcg`` or ``kvm``. :param times: as :func:`host_slowness`, which it is by default."""
    usual = _KVM if accelerator == "kvm" else _TCG
    factor = host_slowness() if times is None else times
    return Budgets(**{field.name: getattr(usual, field.name) * factor for field in fields(Budgets)})
