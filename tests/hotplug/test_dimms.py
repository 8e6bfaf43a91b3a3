"""DIMMs that the guest gives up."""

from __future__ import annotations

import pytest

from pytest_spapr import Contract, Guest, PseriesMachine, QmpRefused
from pytest_spapr.guest.memory import LMB


@pytest.mark.parametrize("lmbs", [1, 2])
def test_a_dimm_comes_and_goes(machine: PseriesMachine, guest: Guest, contract: Contract, lmbs: int) -> None:
    """M05: the guest has the memory, and gives all of it back."""
    before = guest.memory.total()
    dimm = machine.dimms.plug(256 * lmbs)
    assert guest.memory.total() - before == lmbs * LMB
    assert dimm.unplug() == contract.removal(dimm)
    assert guest.memory.total() == before


def test_a_dimm_holds_nothing_that_cannot_be_moved(machine: PseriesMachine, guest: Guest) -> None:
    """Or else a removal is refused now and then, for reasons of the guest's own."""
    dimm = machine.dimms.plug(512)
    assert {guest.read(f"/sys/devices/system/memory/memory{block}/valid_zones") for block in dimm.blocks} == {"Movable"}


def test_the_backend_outlives_its_dimm_and_can_be_deleted(machine: PseriesMachine, contract: Contract) -> None:
    """M07, M41: a backend in use is kept by QEMU, also while its DIMM's unplug is pending."""
    dimm = machine.dimms.plug()
    in_use = "in use|which is mapped"
    with pytest.raises(QmpRefused, match=in_use):
        dimm.delete_backend()
    with machine.paused():
        attempt = dimm.unplug()
        assert attempt == contract.silence(dimm, cause="machine paused")
        with pytest.raises(QmpRefused, match=in_use):
            dimm.delete_backend()
    assert dimm.follow(attempt) == contract.removal(dimm)
    dimm.delete_backend()
    with pytest.raises(QmpRefused, match="not found"):
        dimm.delete_backend()


def test_the_middle_one_of_three_dimms_is_the_one_that_goes(machine: PseriesMachine, guest: Guest, contract: Contract) -> None:
    """M05, M38."""
    first, middle, last = (machine.dimms.plug() for _ in range(3))
    assert middle.unplug() == contract.removal(middle)
    assert first.configured
    assert last.configured
    assert machine.dimms.plug().blocks == middle.blocks
