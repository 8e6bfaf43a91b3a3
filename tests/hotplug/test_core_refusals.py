"""Cores that the guest or QEMU does not give up."""

from __future__ import annotations

import pytest

from pytest_spapr import Contract, Guest, Outcome, PseriesMachine, QmpRefused
from pytest_spapr.guest.kernel_log import CORE_REMOVAL_FAILED, says

from .conftest import ToldRefusal


def test_the_last_online_cpu_is_refused_and_can_be_retried(machine: PseriesMachine, guest: Guest, contract: Contract) -> None:
    """C34, C35."""
    core = machine.cores.plug()
    with guest.cpus.offline(0):
        assert core.unplug() == contract.refusal(core, cause="last online CPU")
        assert guest.cpus.online() == core.guest_cpus()
    assert core.unplug() == contract.retry(core, cause="last online CPU")


def test_each_refusal_is_told_anew(machine: PseriesMachine, guest: Guest, contract: Contract, told_refusal: ToldRefusal) -> None:
    """C36: one event for each refused attempt, and none is left over for the removal."""
    core = machine.cores.plug()
    refusal = told_refusal(core, "last online CPU")
    with guest.cpus.offline(0):
        for _ in range(3):
            assert core.unplug() == refusal
    assert core.unplug() == contract.removal(core)


def test_a_hammered_refusal_leaves_a_core_that_can_be_removed(
    machine: PseriesMachine, guest: Guest, contract: Contract, told_refusal: ToldRefusal
) -> None:
    """C36: a hundred ``device_del`` without a pause. Once the guest has worked them off, all is as before."""
    core = machine.cores.plug()
    refusal = told_refusal(core, "last online CPU")
    hammered = 100
    with guest.cpus.offline(0):
        since = machine.timeline.mark()
        for _ in range(hammered):
            machine.qmp.execute("device_del", {"id": core.id})
        machine.await_records(lambda r: says(r, CORE_REMOVAL_FAILED) is not None, hammered, since, "the guest's refusals")
        guest.settle()
        assert core.configured
        assert core.unplug() == refusal
    assert core.unplug() == contract.removal(core)


def test_a_pending_core_keeps_its_id_and_its_slot(machine: PseriesMachine, contract: Contract) -> None:
    """C37: neither the id nor the core's number can be used again until the guest has given the core up."""
    core = machine.cores.plug(1)
    driver = machine.cores.slots()[0]["type"]
    with machine.paused():
        attempt = core.unplug()
        assert attempt == contract.silence(core, cause="machine paused")
        with pytest.raises(QmpRefused, match=r"Duplicate (device )?ID 'core1'"):
            machine.qmp.execute("device_add", {"driver": driver, "id": core.id, "core-id": 2})
        with pytest.raises(QmpRefused, match="core 1 already populated"):
            machine.qmp.execute("device_add", {"driver": driver, "id": "other", "core-id": 1})
    assert core.follow(attempt) == contract.removal(core)
    assert machine.cores.plug(1, device_id=core.id).configured


def test_a_repeated_request_for_a_pending_core_is_accepted(machine: PseriesMachine, guest: Guest, contract: Contract) -> None:
    """C36: a core has no in-progress error; the guest hears each request and gives the core up once."""
    core = machine.cores.plug()
    with machine.paused():
        assert core.unplug() == contract.silence(core, cause="machine paused")
        repeated = core.unplug()
        assert repeated == contract.repeat(core)
    assert core.follow(repeated).outcome is Outcome.REMOVED
    guest.settle()
    assert guest.cpus.present() == {0}


def test_the_boot_core_is_protected_by_qemu(machine: PseriesMachine, contract: Contract) -> None:
    """C38."""
    machine.cores.plug()
    core = machine.cores.boot_core()
    assert core.unplug() == contract.rejection(core, cause="boot core")
