"""Memory that can be moved and memory that cannot: what the guest gives up, and what is as before where it does not.

A guest with a second NUMA node has that node's memory on its DIMMs and nowhere else, so that a process can ask for it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import pytest

from pytest_spapr import Contract, Guest, Outcome, PseriesMachine
from pytest_spapr.hotplug.dimms import Dimm

from .process import ADDRESS, MEMPOLICY_OF_NODE_1, PIPE, WRITE, process, reserve

# The descriptor that the first pipe of a process is written to.
_PIPE_END: Final = 4

pytestmark = pytest.mark.spapr(numa=2)


@contextmanager
def a_page_of_the_kernel(guest: Guest) -> Iterator[None]:
    """Have the kernel keep a page on node 1 that it cannot move: what waits in a pipe."""
    with process(guest, reserve(1 << 16), MEMPOLICY_OF_NODE_1, (PIPE, ADDRESS), (WRITE, _PIPE_END, ADDRESS, 1)):
        yield


def with_kernel_memory(machine: PseriesMachine, place: int) -> Dimm:
    """Plug a DIMM of three LMBs, of which one may hold memory of the kernel."""
    dimm = machine.dimms.plug(768, node=1)
    machine.guest.memory.give_to_kernel(dimm.blocks[place])
    zones = machine.guest.memory.zones()
    assert [zones[block] for block in dimm.blocks] == ["Normal" if number == place else "Movable" for number in range(3)]
    return dimm


def test_lmbs_whose_kernel_memory_is_free_go_with_the_others(machine: PseriesMachine, contract: Contract) -> None:
    """M37: being the kernel's is no obstacle, holding something of it is."""
    for place in range(3):
        dimm = with_kernel_memory(machine, place)
        assert dimm.unplug() == contract.removal(dimm)


@pytest.mark.parametrize("place", [1, 2], ids=["middle", "last"])
def test_a_page_of_the_kernel_in_a_later_lmb_has_all_come_back(
    machine: PseriesMachine, guest: Guest, contract: Contract, place: int
) -> None:
    """M32, M33, M37: real memory that cannot be moved, no injected fault. Every LMB is online again, and a retry succeeds without it."""
    before = guest.memory.total()
    dimm = with_kernel_memory(machine, place)
    with a_page_of_the_kernel(guest):
        attempt = dimm.unplug()
        assert attempt == contract.refusal(dimm, cause="later LMB")
        assert "unmovable page" in guest.dmesg()
        assert dimm.configured
        assert guest.memory.total() - before == dimm.size << 20
    assert dimm.unplug() == contract.retry(dimm, cause="later LMB")
    if attempt.outcome is Outcome.REFUSED:
        assert guest.memory.total() == before


def test_a_page_of_the_kernel_in_the_first_lmb_is_not_told(machine: PseriesMachine, guest: Guest, contract: Contract) -> None:
    """M32, M33, M37."""
    before = guest.memory.total()
    dimm = with_kernel_memory(machine, 0)
    with a_page_of_the_kernel(guest):
        attempt = dimm.unplug()
        assert attempt == contract.silence(dimm, cause="first LMB refused")
        assert "unmovable page" in guest.dmesg()
        assert guest.memory.total() - before == dimm.size << 20
    # Nothing more: what is in the kernel's zone may have got other memory of its own meanwhile [Linux 6.12: a slab].
    assert dimm.unplug() == contract.retry(dimm, cause="first LMB refused")
