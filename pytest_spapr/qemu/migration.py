"""A machine's move from one QEMU to another: its whole state, RAM too, through a socket that joins the two or by way of a file."""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

from pytest_spapr.deadline import Deadline
from pytest_spapr.errors import MachineDied, MachineError, QmpRefused
from pytest_spapr.qemu.snapshot import migration_end, migration_reason, stream
from pytest_spapr.timeline import Timeline

if TYPE_CHECKING:
    from pytest_spapr.qemu.qmp import Qmp

# A clone was started with the first one on.
_CAPABILITIES: Final = {
    "capabilities": [{"capability": "x-ignore-shared", "state": False}, {"capability": "events", "state": True}]
}
_CHANNEL: Final = "move"
#: What the timeline says when a move begins.
STEP: Final = "migrate"
# Bytes per second. QEMU's default is for a network that others use too.
_UNBOUNDED: Final = 1 << 40
_CHUNK: Final = 1 << 20


def move(left: Timeline, source: Qmp, destination: Qmp, arrived: Timeline, deadline: Deadline) -> None:
    """Give the state of a stopped machine to a QEMU that was started with ``-incoming defer``. Both are paused then.

    RAM goes through the stream whole, whatever it is in: a clone's is a private mapping, which no other process can have. Pages of
    zeros are told, not sent.

    :param left: the source's timeline. :param arrived: that of the destination alone.
    :raises MachineError: QEMU says that the machine cannot be migrated, or the destination could make no sense of it.
    :raises DeadlineExpired: it took too long.
    """
    _prepare(source, destination)
    one, other = socket.socketpair()
    with one, other:
        source.give(one.fileno(), _CHANNEL)
        destination.give(other.fileno(), _CHANNEL)
    since = arrived.mark()
    with _ended_where_it_fails(source, left, deadline):
        try:
            destination.execute("migrate-incoming", {"uri": f"fd:{_CHANNEL}"})
            source.execute("migrate", {"uri": f"fd:{_CHANNEL}"})
            status = arrived.wait(
                migration_end, since=since, deadline=deadline, what="the destination to have the machine's state"
            )
            why = "" if status == "completed" else f"the destination {status}: {migration_reason(destination)}"
        except QmpRefused as refused:
            why = refused.description
        except MachineDied as died:
            if source.dead:
                raise
            why = f"the destination: {died}\nthe source: {migration_reason(source)}"
        if why:
            raise MachineError(f"the machine cannot be migrated: {why}")


def move_through(file: Path, left: Timeline, source: Qmp, destination: Qmp, arrived: Timeline, deadline: Deadline) -> None:
    """Do the same with a file between the two: the destination reads nothing before the state is stored whole.

    :param file: is made, readable to this user alone, as it has the guest's memory in it; it stays, unless the move fails.
    :param left: the source's timeline.
    :raises MachineError: also that there is such a file, or that it could not be written.
    """
    _prepare(source, destination)
    with ExitStack() as undo:

        def store(sock: socket.socket) -> None:
            with sock.makefile("rb") as state, os.fdopen(os.open(file, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "wb") as to:
                undo.callback(file.unlink, missing_ok=True)
                shutil.copyfileobj(state, to, _CHUNK)

        def load(sock: socket.socket) -> None:
            # A QEMU that ends meanwhile says why itself.
            with file.open("rb") as stored, suppress(BrokenPipeError, ConnectionResetError):
                sock.sendfile(stored)
                sock.shutdown(socket.SHUT_WR)

        try:
            with _ended_where_it_fails(source, left, deadline):
                stream(source, left, "migrate", store, deadline)
                stream(destination, arrived, "migrate-incoming", load, deadline)
        except (QmpRefused, MachineError, MachineDied, OSError) as error:
            if source.dead:
                raise
            raise MachineError(f"the machine cannot be moved through {file}: {error}") from error
        undo.pop_all()


@contextmanager
def _ended_where_it_fails(source: Qmp, left: Timeline, deadline: Deadline) -> Iterator[None]:
    """Have the source be done with a move that failed: before, it would refuse to go on ("Migration is not finalized yet")."""
    since = left.mark()
    try:
        yield
    except BaseException:
        began = any(record.event == "MIGRATION" for record in left.since(since))
        if began and not source.dead:
            source.execute("migrate_cancel")
            again = Deadline(deadline.seconds)
            left.wait(migration_end, since=since, deadline=again, what="the source to end its migration")
            # It tells of its end before it is a paused machine again (migration_iteration_finish), which it tells nobody.
            while source.execute("query-status")["status"] == "finish-migrate":
                again.require("the source to be done with its migration")
        raise


def _prepare(source: Qmp, destination: Qmp) -> None:
    for monitor in (source, destination):
        monitor.execute("migrate-set-capabilities", _CAPABILITIES)
    source.execute("migrate-set-parameters", {"max-bandwidth": _UNBOUNDED})
