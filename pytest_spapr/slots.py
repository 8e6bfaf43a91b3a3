"""A bound on the vCPUs and the memory of the machines that one user runs on one host, over all processes.

A slot stands for one vCPU and an equal share of the host's memory. Each is a lock file::

    TMPDIR/pytest-spapr-UID/slot-0 ...   held by whoever runs a machine on it
                            gate         held by the one process that collects slots; the others queue here
                            beyond       held by the one process that may run machines without slots, see Slots.take
                            preparation  held by the one process that prepares a machine without slots

The kernel takes a lock back when its holder dies, however it dies. The directory for temporary files is one for all runs of a
user, where XDG_RUNTIME_DIR is not: a job of cron has none, and it is removed under a job that outlives its login.
"""

from __future__ import annotations

import fcntl
import math
import os
import threading
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from pytest_spapr.deadline import Deadline
from pytest_spapr.errors import ConfigError, DeadlineExpired
from pytest_spapr.private import RELOCATE, private_directory
from pytest_spapr.progress import NullProgress, Progress

# A default machine's memory: a host with less of it per CPU has fewer slots than CPUs.
_SLOT_MIB: Final = 1024
# A guest under test idles about half of its time: it waits for drmgr, which sleeps [two workers on two CPUs used 55 % of them].
_SLOTS_PER_CPU: Final = 2
_SLOT: Final = "slot-"
_GATE: Final = "gate"
_BEYOND: Final = "beyond"
_PREPARATION: Final = "preparation"
_FOREVER: Final = threading.TIMEOUT_MAX / 2
_PID_WIDTH: Final = 10


class Lease:
    """What a machine runs on, held until :meth:`release`. :ivar weight: so many slots; 0 for a machine that runs without."""

    def __init__(self, locks: Sequence[_Lock]) -> None:
        self.weight = sum(lock.path.name.startswith(_SLOT) for lock in locks)
        self._locks = locks

    @property
    def held(self) -> bool:
        return any(lock.open for lock in self._locks)

    def release(self) -> None:
        """Give everything back; a second call does nothing. Never waits; from any thread."""
        _close(self._locks)

    def share(self) -> Lease | None:
        """Return another lease of the same, which is held until both are released; None if this one is released."""
        locks = list(filter(None, (lock.share() for lock in self._locks)))
        return Lease(locks) if locks else None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.release()


class Slots:
    """The slots of one user on one host; one object per process.

    :param directory: where the lock files are. :param count: how many slots there are. :param mib: the memory of each, in MiB.
    :param patience: seconds that a wait may last before it is news.
    """

    def __init__(self, directory: Path, count: int, mib: int, *, patience: float = 1.0) -> None:
        self.count = count
        self.mib = mib
        self._directory = directory
        self._patience = patience
        self._slots = [f"{_SLOT}{number}" for number in range(count)]
        self._leases: list[Lease] = []
        self._taking = threading.Lock()
        self._mutex = threading.Lock()
        # Lock files that a helper thread is blocked on, and who wants them now.
        self._blocked: set[str] = set()
        self._sought: dict[str, _Collection] = {}

    @classmethod
    def of_host(cls) -> Self:
        """Return the slots of this user on this host: two for each CPU that this process may use, fewer where memory is short.

        :raises ConfigError: the directory of the lock files cannot be made, or is not ours alone.
        """
        total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2**20
        return cls(private_directory(), *_shares(len(os.sched_getaffinity(0)), total))

    def weight(self, cpus: int, memory: int) -> int:
        """Return how many slots a machine needs for its vCPUs and its MiB of memory; at most all, so that it can run alone."""
        return min(self.count, max(1, cpus, math.ceil(memory / self.mib)))

    def take(self, weight: int, *, deadline: Deadline | None = None, progress: Progress | None = None) -> Lease:
        """Return ``weight`` slots, waiting until so many are free; 0.1 ms if they are.

        Processes get theirs in the order in which they came. But one that has taken a lease already must not wait for somebody who
        may be waiting for it: it gets what is free, else a lease of weight 0, to run a machine without slots. One process of the
        host at a time has such leases, any number; a second one waits until that one has given them back.

        An error or Ctrl-C during the wait leaves nothing held. Threads take turns.

        :param progress: told of a wait that lasts; ending that phase is the caller's.
        :raises DeadlineExpired: naming who holds slots. :raises ConfigError: a lock file cannot be opened.
        """
        deadline = deadline or Deadline(_FOREVER)
        if not self._taking.acquire(timeout=deadline.remaining):
            raise self._expired(weight, deadline)
        try:
            holding = self._holding()
            if lease := self._now(weight, queue=not holding) or (self._shared() if holding else None):
                return self._noted(lease)
            wait = _Wait(weight, deadline, deadline.sooner(self._patience), progress or NullProgress())
            return self._noted(self._beyond(wait) if holding else self._queue(wait))
        finally:
            self._taking.release()

    def try_take(self, weight: int) -> Lease | None:
        """Return ``weight`` slots if they are free and nobody waits for slots, else None. Never blocks, never keeps a part.

        They are for work that ends by itself, such as preparation: :meth:`take` may wait for it like for anybody else's.
        """
        if not self._taking.acquire(blocking=False):
            return None
        try:
            return self._now(weight, queue=True)
        finally:
            self._taking.release()

    def preparation(self) -> Lease | None:
        """Return the permission to prepare one machine without slots, unless a process of the host has it. Never blocks.

        Whoever has it is free to wait in :meth:`take`: nobody waits for it.
        """
        with _Collection(1) as permission:
            return permission.lease() if permission.fill(self._directory, [_PREPARATION]) else None

    def _now(self, weight: int, *, queue: bool) -> Lease | None:
        if not 1 <= weight <= self.count:
            raise ValueError(f"there are {self.count} slots: a weight of {weight} is none of Slots.weight()'s")
        with _Collection(1) as gate, _Collection(weight) as slots:
            if queue and not gate.fill(self._directory, [_GATE]):
                return None
            return slots.lease() if slots.fill(self._directory, self._slots) else None

    def _queue(self, wait: _Wait) -> Lease:
        with _Collection(1) as gate, _Collection(wait.weight) as slots:
            self._await(gate, [_GATE], wait)
            self._await(slots, self._slots, wait)
            return slots.lease()

    def _beyond(self, wait: _Wait) -> Lease:
        with _Collection(1) as permission:
            self._await(permission, [_BEYOND], wait)
            return permission.lease()

    def _holding(self) -> bool:
        self._leases = [lease for lease in self._leases if lease.held]
        return bool(self._leases)

    def _shared(self) -> Lease | None:
        """Return one more lease of weight 0 if this process has one."""
        return next(filter(None, (lease.share() for lease in self._leases if lease.weight == 0)), None)

    def _noted(self, lease: Lease) -> Lease:
        self._leases.append(lease)
        return lease

    def _await(self, collection: _Collection, names: Iterable[str], wait: _Wait) -> None:
        """Have a helper thread block on each of the lock files until the collection is complete.

        A thread that gets its lock later gives it back at once; one that still waits for an earlier collection is used again.
        """
        for name in names:
            with self._mutex:
                self._sought[name] = collection
                blocked = name in self._blocked
            if not blocked:
                threading.Thread(target=self._block, args=(name,), name=f"spapr-{name}", daemon=True).start()
        if collection.wait(wait.quiet):
            return
        if not wait.told:
            wait.told = True
            wait.progress.phase(f"waiting for {self._wanted(wait.weight)}, {self._holders()}")
        if not collection.wait(wait.deadline):
            raise self._expired(wait.weight, wait.deadline)

    def _block(self, name: str) -> None:
        lock, error = None, None
        with self._mutex:
            self._blocked.add(name)
        try:
            lock = _Lock(self._directory / name)
            lock.acquire()
        except (ConfigError, OSError) as reason:
            error = reason
        with self._mutex:
            self._blocked.discard(name)
            collection = self._sought.pop(name, None)
        if error is not None and collection is not None:
            collection.fail(error)
        if lock is not None and (error is not None or collection is None or not collection.offer(lock)):
            lock.close()

    def _expired(self, weight: int, deadline: Deadline) -> DeadlineExpired:
        return DeadlineExpired(self._wanted(weight), deadline.seconds, self._holders())

    def _wanted(self, weight: int) -> str:
        return f"{weight} of the {self.count} machine slots of this host"

    def _holders(self) -> str:
        """Return who holds slots, as far as they could say so."""
        pids = sorted({pid for name in (*self._slots, _BEYOND) if (pid := _holder(self._directory / name))})
        return f"held by {'process' if len(pids) == 1 else 'processes'} {', '.join(map(str, pids))}" if pids else "held by others"


@dataclass(slots=True)
class _Wait:
    """One call of take() that has to wait. :ivar quiet: until then nobody is told."""

    weight: int
    deadline: Deadline
    quiet: Deadline
    progress: Progress
    told: bool = False


class _Lock:
    """An open lock file. Python closes its descriptor in new programs, and the hook below in forks."""

    live: Final[set[_Lock]] = set()

    def __init__(self, path: Path, descriptor: int | None = None) -> None:
        """Open the file, making it. :raises ConfigError: it cannot be opened."""
        self.path = path
        self._closing = threading.Lock()
        if descriptor is None:
            try:
                descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
            except OSError as error:
                raise ConfigError(f"cannot open the lock file {path}: {error.strerror}. {RELOCATE}") from error
        self._descriptor = descriptor
        self._signed = False
        self.live.add(self)

    @property
    def open(self) -> bool:
        return self._descriptor >= 0

    def acquire(self, *, blocking: bool = True) -> bool:
        """Return whether the lock is held now; waits for it unless told not to."""
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | (0 if blocking else fcntl.LOCK_NB))
        except BlockingIOError:
            return False
        return True

    def share(self) -> _Lock | None:
        """Return the same lock once more, held until both are closed; None if this one is closed."""
        with self._closing:
            return _Lock(self.path, os.dup(self._descriptor)) if self.open else None

    def sign(self) -> None:
        """Say in the file who holds the lock. It is only for people: a full disk is no reason to fail."""
        self._signed = True
        with suppress(OSError):
            os.pwrite(self._descriptor, f"{os.getpid():<{_PID_WIDTH}}\n".encode(), 0)

    def close(self) -> None:
        """Give the lock back; a second call does nothing."""
        with self._closing:
            descriptor, self._descriptor = self._descriptor, -1
            self.live.discard(self)
            if descriptor >= 0:
                if self._signed:
                    with suppress(OSError):
                        os.ftruncate(descriptor, 0)
                os.close(descriptor)

    @classmethod
    def forget(cls) -> None:
        """Close all in a forked child, where the parent's locks would outlive the parent."""
        for lock in cls.live:
            os.close(lock._descriptor)
            lock._descriptor = -1
        cls.live.clear()


os.register_at_fork(after_in_child=_Lock.forget)


class _Collection:
    """Locks for one purpose: as many as it wants, or none. The ``with`` block gives back what has not become a lease."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._locks: list[_Lock] = []
        self._error: Exception | None = None
        self._open = True
        self._mutex = threading.Lock()
        self._ready = threading.Event()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        with self._mutex:
            self._open = False
            locks, self._locks = self._locks, []
        _close(locks)

    def fill(self, directory: Path, names: Iterable[str]) -> bool:
        """Collect locks that nobody holds; return whether there were enough."""
        for name in names:
            lock = _Lock(directory / name)
            self._locks.append(lock)
            if not lock.acquire(blocking=False):
                self._locks.pop().close()
            elif len(self._locks) == self._count:
                return True
        return False

    def offer(self, lock: _Lock) -> bool:
        """Keep a lock that a helper thread has got, if it is still wanted."""
        with self._mutex:
            if not self._open or len(self._locks) == self._count:
                return False
            self._locks.append(lock)
            complete = len(self._locks) == self._count
        if complete:
            self._ready.set()
        return True

    def fail(self, error: Exception) -> None:
        """End the wait with an error."""
        self._error = error
        self._ready.set()

    def wait(self, deadline: Deadline) -> bool:
        """Wait for helper threads to complete it; False at the deadline. :raises Exception: that of a thread."""
        ready = self._ready.wait(deadline.remaining)
        if self._error is not None:
            raise self._error
        return ready

    def lease(self) -> Lease:
        """Hand the locks over."""
        for lock in self._locks:
            lock.sign()
        lease = Lease(self._locks)
        self._locks = []
        return lease


def _close(locks: Iterable[_Lock]) -> None:
    for lock in locks:
        lock.close()


def _shares(cpus: int, mib: int) -> tuple[int, int]:
    """Return how many slots a host of so many CPUs and MiB has, and the MiB of each."""
    count = max(1, min(_SLOTS_PER_CPU * cpus, mib // _SLOT_MIB))
    return count, mib // count


def _holder(path: Path) -> int | None:
    """Return the process that signed a lock file last, if it lives."""
    with suppress(OSError, ValueError):
        pid = int(path.read_text())
        return pid if Path(f"/proc/{pid}").exists() else None
    return None
