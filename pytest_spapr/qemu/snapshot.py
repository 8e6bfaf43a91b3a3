"""A machine's state on disk: its RAM, which is a file that QEMU maps, and its devices, which QEMU's migration writes.

The capability ``x-ignore-shared`` (QEMU 4.0) leaves RAM that is mapped shared out of the migration stream. What remains is 2 MB. It
passes through a socket: the one way that all versions have (``file:`` came with 8.2, a plain file behind ``fd:`` is deprecated
since 9.1, and the sandbox denies ``exec:``).
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar

from pytest_spapr.deadline import Deadline
from pytest_spapr.errors import DeadlineExpired, MachineError
from pytest_spapr.timeline import Record, Timeline

if TYPE_CHECKING:
    from pytest_spapr.qemu.qmp import Qmp

_CAPABILITIES: Final = {
    "capabilities": [{"capability": "x-ignore-shared", "state": True}, {"capability": "events", "state": True}]
}
_CHANNEL: Final = "state"
_CHUNK: Final = 1 << 20

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A machine at rest. :ivar ram: the file of its RAM, never written to again. :ivar devices: the migration stream without it."""

    ram: Path
    devices: bytes


def save(qmp: Qmp, timeline: Timeline, deadline: Deadline) -> bytes:
    """Return the device state of a stopped machine whose RAM is a shared mapping; 0.02 s. The machine is of no more use.

    :raises MachineError: QEMU says that the machine cannot be migrated, or gave up.
    """
    qmp.execute("migrate-set-capabilities", _CAPABILITIES)
    return stream(qmp, timeline, "migrate", _received, deadline)


def restore(qmp: Qmp, timeline: Timeline, devices: bytes, deadline: Deadline) -> None:
    """Give a machine that was started with ``-incoming defer`` its device state; 0.01 s. It is paused then.

    :raises MachineDied: QEMU could not make sense of the state; its last words say why.
    """

    def send(sock: socket.socket) -> bytes:
        # A QEMU that ends meanwhile says why itself.
        with suppress(BrokenPipeError, ConnectionResetError):
            sock.sendall(devices)
            sock.shutdown(socket.SHUT_WR)
        return b""

    qmp.execute("migrate-set-capabilities", _CAPABILITIES)
    stream(qmp, timeline, "migrate-incoming", send, deadline)


def restore_from(qmp: Qmp, timeline: Timeline, path: str, deadline: Deadline) -> None:
    """Do the same with a device state that is a file where QEMU is, for one that no socket can be given to. QEMU 8.2 and later.

    :param path: as QEMU names it; the file may be longer. :raises MachineError: QEMU could not read it.
    """
    qmp.execute("migrate-set-capabilities", _CAPABILITIES)
    since = timeline.mark()
    qmp.execute("migrate-incoming", {"uri": f"file:{path}"})
    status = timeline.wait(migration_end, since=since, deadline=deadline, what="QEMU's migrate-incoming")
    if status != "completed":
        raise MachineError(f"QEMU's migrate-incoming {status}: {migration_reason(qmp)}")


def migration_end(record: Record) -> str | None:
    """Return how a migration ended, if this record says so: ``completed``, ``failed`` or ``cancelled``."""
    if record.event != "MIGRATION" or record.data is None:
        return None
    status = str(record.data["data"]["status"])
    return status if status in ("completed", "failed", "cancelled") else None


def migration_reason(qmp: Qmp) -> str:
    """Return why a migration failed, in QEMU's words where it has some."""
    return str(qmp.execute("query-migrate").get("error-desc", "no reason given"))


def stream(qmp: Qmp, timeline: Timeline, command: str, transfer: Callable[[socket.socket], T], deadline: Deadline) -> T:
    """Have QEMU write the machine's state to a socket, or read it from there, and return what became of our end of it.

    :param command: ``migrate`` or ``migrate-incoming``. :param transfer: reads our end until there is no more, or writes to it.
    :raises MachineError: QEMU gave up, or ``transfer`` raised OSError.
    """
    ours, theirs = socket.socketpair()

    def guarded() -> T:
        try:
            return transfer(ours)
        except BaseException:
            # QEMU would wait for ever.
            ours.shutdown(socket.SHUT_RDWR)
            raise

    with ours, ThreadPoolExecutor(1, "spapr-state") as pool:
        with theirs:
            qmp.give(theirs.fileno(), _CHANNEL)
        since = timeline.mark()
        try:
            qmp.execute(command, {"uri": f"fd:{_CHANNEL}"})
            transferred = pool.submit(guarded)
            status = timeline.wait(migration_end, since=since, deadline=deadline, what=f"QEMU's {command}")
            if status != "completed":
                ours.shutdown(socket.SHUT_RDWR)
                why = transferred.exception() or migration_reason(qmp)
                raise MachineError(f"QEMU's {command} {status}: {why}")
            return _result(transferred, deadline, f"the stream of QEMU's {command} to end")
        except BaseException:
            # Ends the transfer too, which the pool waits for.
            with suppress(OSError):
                ours.shutdown(socket.SHUT_RDWR)
            raise


def _result(transferred: Future[T], deadline: Deadline, what: str) -> T:
    try:
        return transferred.result(deadline.remaining)
    except TimeoutError as error:
        raise DeadlineExpired(what, deadline.seconds) from error


def _received(sock: socket.socket) -> bytes:
    chunks = []
    while chunk := sock.recv(_CHUNK):
        chunks.append(chunk)
    return b"".join(chunks)
