"""A guest's kernel that oopses, panics or hangs in the midst of an unplug: the test ends in a stated time, and is told which."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest

from pytest_spapr import Contract, Guest, Lane, LaunchMachine, Outcome, PseriesMachine, Silence, SshFailed
from pytest_spapr.hotplug.outcome import Presence
from pytest_spapr.report.failure import explain

from .guest_text import NOTHING, STUCK, overwrite

_OOPS = "guest's kernel: Oops: Exception in kernel mode, sig: 4 [#1] in dlpar_memory+0x8/"
# From the oops to the verdict it takes a moment; the backstop of an unplug is 30 s or 90 s.
_SOON = 20.0


def test_an_oops_of_the_hotplug_worker_ends_the_wait_and_is_the_evidence(
    machine: PseriesMachine, guest: Guest, contract: Contract
) -> None:
    dimm = machine.dimms.plug()
    overwrite(machine, "dlpar_memory", NOTHING)
    attempt = dimm.unplug()
    assert (attempt.outcome, attempt.cause) == (Outcome.PENDING, Silence.STILL_WORKING)
    assert attempt.elapsed < _SOON
    assert attempt.evidence[-1].startswith(_OOPS)
    assert " on the pseries hotplug workque" in attempt.evidence[-1]
    # What a person reads of it.
    assert any(_OOPS in line for line in explain(attempt, contract.removal(dimm))[:10])
    traced = [record for record in machine.timeline.since(attempt.began, Lane.CONSOLE) if "Call Trace:" in record.text]
    assert len(traced) == 1
    # Who did the work is dead, the guest is not, and its next boot has it all again.
    assert guest.ask("true").status == 0
    machine.reset()
    dimm = machine.dimms.plug()
    assert dimm.unplug() == contract.removal(dimm)


def test_an_oops_that_is_to_be_a_panic_ends_the_wait_and_both_are_told(machine: PseriesMachine, guest: Guest) -> None:
    dimm = machine.dimms.plug()
    guest.ask("echo 1 > /proc/sys/kernel/panic_on_oops").check()
    overwrite(machine, "dlpar_memory", NOTHING)
    attempt = dimm.unplug()
    assert attempt.outcome is Outcome.PENDING
    assert attempt.elapsed < _SOON
    assert machine.status() == "guest-panicked"
    *_, oops, panic = attempt.evidence
    assert oops.startswith(_OOPS)
    assert panic.startswith("guest's kernel: Kernel panic - not syncing: Fatal exception")
    assert attempt.views.guest is Presence.UNKNOWN


def test_a_guest_that_hangs_is_told_when_the_budgets_are_over(launch_machine: LaunchMachine) -> None:
    """Its only CPU takes no interrupt any more: neither its console nor its network answers."""
    machine = launch_machine(boot=False)
    machine.budgets = replace(machine.budgets, command=15.0, ssh=3.0)
    machine.boot()
    dimm = machine.dimms.plug()
    overwrite(machine, "dlpar_memory", STUCK)
    attempt = dimm.unplug(seconds=5.0)
    assert attempt.outcome is Outcome.PENDING
    assert "no verdict before the backstop: waited 5.0 s in vain" in attempt.evidence[0]
    assert attempt.evidence[1].startswith("the guest does not answer: waited 15.0 s in vain for the guest command `")
    assert (attempt.views.qemu, attempt.views.guest) == (Presence.PRESENT, Presence.UNKNOWN)
    with pytest.raises(SshFailed, match=r"the guest's ssh server did not answer within 3\.0 s"):
        machine.guest.run("true")
    began = time.monotonic()
    machine.close()
    assert time.monotonic() - began < 5.0
