"""PCI host bridges: whole PCI domains that come and go, with what is behind them."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from pytest_spapr import Contract, Guest, Presence, PseriesMachine, QmpRefused
from pytest_spapr.hotplug.attempt import Views

from .inventory import nothing_changes, told

# hw/ppc/spapr_pci.h, SPAPR_PCI_BASE_BUID: the unit address of PHB 0 in the device tree.
BUID = 0x800000020000000


@pytest.mark.spapr_defect("phb-again-oops")
def test_a_phb_goes_with_what_is_behind_it_and_can_come_again(machine: PseriesMachine, guest: Guest, contract: Contract) -> None:
    """P29: nobody asked for the removal of what is behind it. QEMU says of each that it is gone, once."""
    bridges = guest.pci.host_bridges()
    for behind in (2, 0):
        phb = machine.phbs.plug(5)
        cards = [phb.pci.plug("virtio-rng-pci") for _ in range(behind)]
        assert guest.pci.host_bridges().keys() - bridges.keys() == {BUID + 5}
        assert guest.pci.functions().keys() >= {card.address for card in cards}
        attempt = phb.unplug()
        assert attempt == contract.removal(phb)
        assert sorted(told(machine, attempt.began)) == sorted([phb.id, *(card.id for card in cards)])
        assert all(card.views() == Views(Presence.ABSENT, Presence.ABSENT) for card in cards)
    assert guest.pci.host_bridges() == bridges


def test_a_card_behind_a_phb_goes_alone(machine: PseriesMachine, contract: Contract) -> None:
    """P19, P29: and its PHB can still go after it."""
    phb = machine.phbs.plug()
    card, other = (phb.pci.plug("virtio-rng-pci") for _ in range(2))
    assert card.unplug() == contract.removal(card)
    assert other.configured
    assert phb.configured


@pytest.mark.spapr_slow
def test_a_card_that_was_asked_for_goes_with_its_phb(machine: PseriesMachine, guest: Guest, contract: Contract) -> None:
    """P29: both are pending at once, the card first."""
    phb = machine.phbs.plug()
    card = phb.pci.plug("virtio-rng-pci")
    with guest.rtas_errd.killed():
        attempts = [device.unplug() for device in (card, phb)]
        assert attempts == [contract.silence(device, cause="rtas_errd absent") for device in (card, phb)]
    assert card.follow(attempts[0]) == contract.removal(card)
    assert phb.follow(attempts[1]) == contract.removal(phb)


@pytest.mark.spapr_slow
def test_a_drmgr_that_does_not_get_its_lock_gives_up_silently(machine: PseriesMachine, guest: Guest, contract: Contract) -> None:
    """P26: a PHB is a logical resource, whose refusal QEMU would tell. drmgr does not refuse, it just does not do it."""
    phb = machine.phbs.plug()
    with guest.drmgr.lock_held():
        attempt = phb.unplug()
        assert attempt == contract.silence(phb, cause="drmgr locked")
        assert phb.unplug() == contract.repeat(phb)
    assert phb.unplug() == contract.retry(phb, cause="drmgr locked")
    assert phb.configured
    guest.drmgr.remove_phb(phb.drcs[0])
    assert phb.follow(attempt) == contract.removal(phb)


def test_the_machines_own_phb_goes_like_any_other(machine: PseriesMachine, guest: Guest, contract: Contract) -> None:
    """P29: nothing protects it, as its core 0 is protected; with it goes the network. It can come again, under an id."""
    own = machine.phbs.boot_phb()
    assert guest.pci.functions()
    attempt = own.unplug()
    assert attempt == contract.removal(own)
    assert not guest.pci.functions()
    assert machine.qmp.execute("query-pci") == []
    again = machine.phbs.plug(own.index)
    assert again.pci.plug("virtio-rng-pci").configured


# The last index there can be, with a gap before it. Each NUMA node has a core; the second has no memory.
MACHINE = (
    *("-object", "memory-backend-ram,id=all,size=1024M", "-numa", "node,nodeid=0,memdev=all", "-numa", "node,nodeid=1"),
    *("-numa", "cpu,node-id=0,core-id=0", "-numa", "cpu,node-id=1,core-id=1"),
    *("-device", "spapr-pci-host-bridge,index=30,id=last,numa_node=1"),
)


@pytest.mark.spapr(cpus=2, max_cpus=2, qemu_args=MACHINE)
@pytest.mark.spapr_slow
def test_a_phb_of_the_command_line_goes(machine: PseriesMachine, guest: Guest, contract: Contract) -> None:
    """P19: the last of a row with gaps; its bus is near to the CPUs of the NUMA node that it was given."""
    last = machine.phbs.boot_phb(30)
    assert last.configured
    assert guest.pci.host_bridges().keys() == {BUID, BUID + 30}
    near = [guest.read(f"/sys/class/pci_bus/{domain:04x}:00/cpulistaffinity") for domain in (0, last.pci.domain)]
    # None was given to the machine's own.
    assert near == ["0-1", "1"]
    assert last.unplug() == contract.removal(last)
    assert guest.pci.host_bridges().keys() == {BUID}


def test_a_full_phb_takes_no_more(launch_machine: Callable[..., PseriesMachine], contract: Contract) -> None:
    """P19: 32 cards, and each of them goes with it."""
    machine = launch_machine(image=None, boot=False)
    phb = machine.phbs.plug()
    cards = [phb.pci.plug("virtio-rng-pci", slot=slot) for slot in range(32)]
    with (
        nothing_changes(machine),
        pytest.raises(QmpRefused, match=r"PCI: (no slot/function available|slot 31 function 0 already)"),
    ):
        machine.qmp.execute("device_add", {"driver": "virtio-rng-pci", "id": "bad", "bus": f"{phb.id}.0"})
    attempt = phb.unplug()
    assert attempt == contract.before_boot(phb)
    assert sorted(told(machine, attempt.began)) == sorted([phb.id, *(card.id for card in cards)])


@pytest.mark.spapr_slow
def test_a_full_phb_goes_with_all_its_cards(launch_machine: Callable[..., PseriesMachine], contract: Contract) -> None:
    """P19, P29: drmgr takes some seconds for each."""
    machine = launch_machine(boot=False)
    phb = machine.phbs.plug()
    cards = [phb.pci.plug("virtio-rng-pci", slot=slot, wait=False) for slot in range(32)]
    machine.boot()
    assert machine.guest.pci.functions().keys() >= {card.address for card in cards}
    assert phb.unplug(seconds=3600) == contract.removal(phb)
    assert not [card for card in cards if card.configured]
