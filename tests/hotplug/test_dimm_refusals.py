"""DIMMs that the guest does not give up: signalled or not, and what helps."""

from __future__ import annotations

import pytest

from pytest_spapr import Contract, Guest, Lane, Outcome, PseriesMachine

from .conftest import ToldRefusal


def test_a_refusal_at_a_later_lmb_is_signalled_and_rolled_back(machine: PseriesMachine, guest: Guest, contract: Contract) -> None:
    """M32, M33: the block that had gone is back, and the retry succeeds once the cause is gone."""
    dimm = machine.dimms.plug(512)
    total = guest.memory.total()
    with guest.memory.offline_refused(after=dimm.blocks[:1]):
        assert dimm.unplug() == contract.refusal(dimm, cause="later LMB")
        assert guest.memory.total() == total
    assert dimm.unplug() == contract.retry(dimm, cause="later LMB")


def test_qemu_says_once_on_stderr_that_a_dimm_was_refused(
    machine: PseriesMachine, guest: Guest, told_refusal: ToldRefusal
) -> None:
    """M32: once for the DIMM, not once for each of its three LMBs."""
    dimm = machine.dimms.plug(768)
    refusal = told_refusal(dimm, "later LMB")
    with guest.memory.offline_refused(after=dimm.blocks[:2]):
        assert dimm.unplug() == refusal
    said = [record.text for record in machine.timeline.since(0, Lane.STDERR)]
    assert sum(f"Device hotunplug rejected by the guest for device {dimm.id}" in line for line in said) == 1


def test_a_signalled_refusal_can_be_repeated(
    machine: PseriesMachine, guest: Guest, contract: Contract, told_refusal: ToldRefusal
) -> None:
    """M32: each refused attempt is told, and QEMU accepts the next one."""
    dimm = machine.dimms.plug(512)
    refusal = told_refusal(dimm, "later LMB")
    for _ in range(2):
        with guest.memory.offline_refused(after=dimm.blocks[:1]):
            assert dimm.unplug() == refusal
    assert dimm.unplug() == contract.removal(dimm)


@pytest.mark.parametrize("lmbs", [1, 2])
def test_a_refusal_at_the_first_lmb_is_silent(machine: PseriesMachine, guest: Guest, contract: Contract, lmbs: int) -> None:
    """M32, M34: no event ever comes, and QEMU waits for ever: the repeat is rejected even when the cause is gone."""
    dimm = machine.dimms.plug(256 * lmbs)
    with guest.memory.offline_refused():
        assert dimm.unplug() == contract.silence(dimm, cause="first LMB refused")
        assert dimm.unplug() == contract.repeat(dimm)
    assert dimm.unplug() == contract.retry(dimm, cause="first LMB refused")
    assert dimm.configured


def test_a_stuck_dimm_is_freed_from_inside_the_guest(machine: PseriesMachine, guest: Guest, contract: Contract) -> None:
    """M33: the way out of a silent refusal without a reset."""
    dimm = machine.dimms.plug()
    with guest.memory.offline_refused():
        attempt = dimm.unplug()
        assert attempt == contract.silence(dimm, cause="first LMB refused")
    guest.memory.remove(dimm.drcs[0])
    assert dimm.follow(attempt) == contract.removal(dimm)


@pytest.mark.spapr_defect("dimm-first-lmb-silent")
def test_a_management_layer_is_told_that_a_dimm_of_one_lmb_stays(machine: PseriesMachine, guest: Guest) -> None:
    """M32: what everybody expects, and no kernel does."""
    dimm = machine.dimms.plug()
    with guest.memory.offline_refused():
        assert dimm.unplug().outcome is Outcome.REFUSED


@pytest.mark.spapr_defect("dimm-doubled-guest-error")
def test_one_refusal_of_a_dimm_is_told_once(machine: PseriesMachine, guest: Guest, told_refusal: ToldRefusal) -> None:
    """M32."""
    dimm = machine.dimms.plug(512)
    told_refusal(dimm, "later LMB")
    with guest.memory.offline_refused(after=dimm.blocks[:1]):
        assert dimm.unplug().event_names.count("DEVICE_UNPLUG_GUEST_ERROR") == 1
