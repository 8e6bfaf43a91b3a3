"""Unplug and migration."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager

from pytest_spapr import Contract, Deadline, Kind, Outcome, PseriesMachine, Record

from .kinds import plug


@contextmanager
def migrating(machine: PseriesMachine) -> Iterator[None]:
    """Have the machine migrate inside the ``with`` block, to a destination that takes nothing; the migration is cancelled then."""
    machine.qmp.execute("migrate-set-capabilities", {"capabilities": [{"capability": "events", "state": True}]})
    ours, theirs = socket.socketpair()
    with ours:
        with theirs:
            machine.qmp.give(theirs.fileno(), "nowhere")
        machine.qmp.execute("migrate", {"uri": "fd:nowhere"})
        yield
        since = machine.timeline.mark()
        machine.qmp.execute("migrate_cancel")

    def over(record: Record) -> bool | None:
        ends = ("cancelled", "failed")
        return True if record.event == "MIGRATION" and record.data and record.data["data"]["status"] in ends else None

    machine.timeline.wait(over, since=since, deadline=Deadline(machine.budgets.qmp), what="the migration's end")


def test_nothing_goes_while_the_machine_migrates(machine: PseriesMachine, contract: Contract, kind: Kind) -> None:
    """C42, P31: QEMU rejects the command, nothing is pending, and afterwards the device goes as ever."""
    device = plug(machine, kind)
    with migrating(machine):
        for _ in range(2):
            attempt = device.unplug()
            assert (attempt.outcome, attempt.asked, attempt.events) == (Outcome.REJECTED, False, ())
            assert attempt.reply == "device_del not allowed while migrating"
    assert device.configured
    assert not device.waiting
    assert device.unplug() == contract.removal(device)
