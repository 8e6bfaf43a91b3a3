"""The time limit of an unplug: 15 s of virtual time for cores, in QEMU's development tree from 51254ffb32 to its revert d522cb52e6 (6.0).

No release has it. Where the build under test does (feature ``unplug-timer``), its every promise is tried; where it does not, the same
silences last.
"""

from __future__ import annotations

import re
from contextlib import suppress

import pytest

from pytest_spapr import (
    Attempt,
    Contract,
    Deadline,
    DeadlineExpired,
    Guest,
    Kind,
    LaunchMachine,
    Outcome,
    Presence,
    PseriesMachine,
    QemuBuild,
)
from pytest_spapr.qemu.clock import virtual_seconds
from pytest_spapr.qemu.snapshot import restore

from .kinds import plug

WINDOW = 15.0
#: What a host may be late by, in seconds.
SLACK = 2.0


@pytest.fixture
def timer(qemu_build: QemuBuild) -> None:
    """The build has the time limit."""
    if "unplug-timer" not in qemu_build.features:
        pytest.skip(f"{qemu_build.version_text} has no time limit for an unplug")


def left(rejected: Attempt) -> int:
    """Return the seconds that QEMU says are left of the window."""
    found = re.search(r"(\d+) seconds timeout remaining$", rejected.reply or "")
    assert found, rejected
    return int(found[1])


def host_seconds(machine: PseriesMachine, seconds: float) -> None:
    """Let time of the host pass."""
    with suppress(DeadlineExpired):
        machine.timeline.wait(lambda _: None, since=machine.timeline.mark(), deadline=Deadline(seconds), what="time to pass")


class TestEveryBuild:
    """With the limit and without it; of the silence of a firmware: ``test_silence.py``."""

    def test_silence_of_a_guest_outlasts_the_window(self, machine: PseriesMachine, guest: Guest, contract: Contract) -> None:
        """X04: a DIMM and a PCI device are waited for by every QEMU; a core by those that neither had a limit nor were told."""
        core, dimm, card = (plug(machine, kind) for kind in (Kind.CORE, Kind.DIMM, Kind.PCI))
        with guest.cpus.offline(0), guest.memory.offline_refused(), guest.rtas_errd.killed():
            silent = [
                (core, "last online CPU", core.unplug()),
                (dimm, "first LMB refused", dimm.unplug()),
                (card, "rtas_errd absent", card.unplug()),
            ]
            assert silent[0][2] == contract.refusal(core, cause="last online CPU")
            for device, cause, attempt in silent:
                assert device.outlast(attempt, WINDOW + SLACK) == contract.outlasted(device, cause=cause)
            assert all(device.configured for device in (core, dimm, card))


@pytest.mark.usefixtures("timer")
class TestWindow:
    """Of a core that the guest refuses to give up, which it can tell nobody in those days."""

    def test_a_repeat_is_refused_with_the_time_that_is_left(
        self, machine: PseriesMachine, guest: Guest, contract: Contract
    ) -> None:
        """It falls with the virtual clock: by the host's while the machine runs, and not at all while it is paused."""
        core = machine.cores.plug()
        with guest.cpus.offline(0):
            attempt = core.unplug()
            assert attempt == contract.refusal(core, cause="last online CPU")
            first = core.unplug()
            assert first == contract.repeat(core)
            assert WINDOW - 1 - SLACK <= left(first) < WINDOW
            core.outlast(attempt, 5)
            second = core.unplug()
            assert second == contract.repeat(core)
            assert WINDOW - 5 - SLACK <= left(second) <= WINDOW - 5
            with machine.paused():
                host_seconds(machine, 5)
                third = core.unplug()
                assert third == contract.repeat(core)
            assert left(second) - SLACK <= left(third) <= left(second)

    def test_its_end_is_silent_and_not_early(self, machine: PseriesMachine, guest: Guest, contract: Contract) -> None:
        """Five seconds of a pause are no part of it."""
        core = machine.cores.plug()
        with guest.cpus.offline(0):
            attempt = core.unplug()
            with machine.paused():
                host_seconds(machine, 5)
            early = core.outlast(attempt, WINDOW - SLACK)
            assert (early.outcome, early.waiting) == (Outcome.PENDING, True)
            late = core.outlast(early, WINDOW + SLACK)
            assert late == contract.outlasted(core, cause="last online CPU")
            assert late.outcome is Outcome.REVERTED
            assert core.configured

    def test_a_retry_after_it_succeeds_once_the_guest_can(
        self, machine: PseriesMachine, guest: Guest, contract: Contract
    ) -> None:
        core = machine.cores.plug()
        with guest.cpus.offline(0):
            attempt = core.outlast(core.unplug(), WINDOW + SLACK)
        assert attempt.outcome is Outcome.REVERTED
        assert core.unplug() == contract.removal(core)

    def test_a_retry_while_the_cause_lasts_begins_another_one(
        self, machine: PseriesMachine, guest: Guest, contract: Contract
    ) -> None:
        core = machine.cores.plug()
        with guest.cpus.offline(0):
            assert core.outlast(core.unplug(), WINDOW + SLACK).outcome is Outcome.REVERTED
            again = core.unplug()
            assert again == contract.refusal(core, cause="last online CPU")
            assert WINDOW - 1 - SLACK <= left(core.unplug()) < WINDOW
            assert core.outlast(again, WINDOW - SLACK).outcome is Outcome.PENDING
            assert core.outlast(again, WINDOW + SLACK).outcome is Outcome.REVERTED

    def test_a_removal_inside_ends_it(self, machine: PseriesMachine, guest: Guest, contract: Contract) -> None:
        """The next core in the slot has a window of its own: what is left of the first one does not cut it short."""
        core = machine.cores.plug(1)
        with guest.cpus.offline(0):
            attempt = core.unplug()
            core.outlast(attempt, 5)
        guest.cpus.remove(core.drcs[0])
        assert core.follow(attempt) == contract.removal(core)
        core = machine.cores.plug(1)
        with guest.cpus.offline(0):
            attempt = core.unplug()
            assert core.outlast(attempt, WINDOW - SLACK).outcome is Outcome.PENDING

    def test_a_guest_that_is_late_leaves_a_core_in_qemu_alone(
        self, machine: PseriesMachine, guest: Guest, contract: Contract
    ) -> None:
        """The race for which the limit was taken back: the guest gives the core up, and nobody wants it. A retry asks nobody."""
        core = machine.cores.plug()
        with guest.cpus.offline(0):
            attempt = core.outlast(core.unplug(), WINDOW + SLACK)
        assert attempt.outcome is Outcome.REVERTED
        since = machine.timeline.mark()
        guest.cpus.remove(core.drcs[0])
        guest.settle()
        views = core.views()
        assert (views.qemu, views.guest) == (Presence.PRESENT, Presence.ABSENT)
        assert not [record for record in machine.timeline.since(since) if record.event == "DEVICE_DELETED"]
        assert core.unplug() == contract.unasked_removal(core)

    def test_a_reset_inside_removes_the_core(self, machine: PseriesMachine, guest: Guest) -> None:
        core = machine.cores.plug()
        with guest.cpus.offline(0):
            attempt = core.unplug()
            assert attempt.waiting
            machine.reset(wait=False)
        deleted = [record for record in machine.timeline.since(attempt.ended) if record.event == "DEVICE_DELETED"]
        assert deleted[-1].data is not None
        assert deleted[-1].data["data"].get("device") == core.id

    def test_a_migration_inside_begins_it_anew(self, launch_machine: LaunchMachine) -> None:
        """What was left of it is not in the stream: the destination waits for the whole of it."""
        source = launch_machine(image=None, cpus=2)
        core = source.cores.boot_core(1)
        core.outlast(core.unplug(), 6)
        assert left(core.unplug()) < WINDOW - 5
        state = source.save()
        source.quit()
        destination = launch_machine(image=None, boot=False, cpus=2, qemu_args=("-incoming", "defer"))
        restore(destination.qmp, destination.timeline, state, Deadline(destination.budgets.move))
        core = destination.cores.boot_core(1)
        since = destination.timeline.mark()
        destination.cont()
        assert core.waiting
        assert WINDOW - 1 - SLACK <= left(core.unplug()) < WINDOW
        while (rest := WINDOW - SLACK - virtual_seconds(destination.timeline, since)) > 0:
            host_seconds(destination, rest)
        assert core.waiting
        host_seconds(destination, 2 * SLACK)
        assert core.waiting is False
