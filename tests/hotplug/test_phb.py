"""PCI host bridges: whole PCI domains that come and go, with what is behind them."""

from __future__ import annotations

from typing import Any

import pytest

from pytest_spapr import Contract, Guest, Presence, PseriesMachine, QmpRefused

from .inventory import events_since, nothing_changes


def test_a_phb_goes_with_the_devices_behind_it(machine: PseriesMachine, guest: Guest, contract: Contract) -> None:
    """P29: nobody asked for the removal of what is behind it. QEMU says of each that it is gone, once."""
    phb = machine.phbs.plug()
    cards = [phb.pci.plug("virtio-rng-pci") for _ in range(2)]
    assert guest.pci.functions().keys() >= {card.address for card in cards}
    attempt = phb.unplug()
    assert attempt == contract.removal(phb)
    deleted = [event["data"].get("device") for event in events_since(machine, attempt.began, "DEVICE_DELETED")]
    assert sorted(filter(None, deleted)) == sorted([phb.id, *(card.id for card in cards)])
    for card in cards:
        assert card.views().qemu is Presence.ABSENT
        assert not card.configured


@pytest.mark.spapr_defect("phb-again-oops")
def test_a_phb_of_the_same_index_can_come_again(machine: PseriesMachine, guest: Guest, contract: Contract) -> None:
    """P29."""
    bridges = guest.pci.host_bridges()
    for _ in range(2):
        phb = machine.phbs.plug(5)
        assert guest.pci.host_bridges().keys() - bridges.keys() == {0x800000020000005}
        assert phb.unplug() == contract.removal(phb)
    assert guest.pci.host_bridges() == bridges


def test_a_card_behind_a_phb_goes_alone(machine: PseriesMachine, contract: Contract) -> None:
    """P19, P29: and its PHB can still go after it."""
    phb = machine.phbs.plug()
    card, other = (phb.pci.plug("virtio-rng-pci") for _ in range(2))
    assert card.unplug() == contract.removal(card)
    assert other.configured
    assert phb.configured


def test_a_card_that_was_asked_for_goes_with_its_phb(machine: PseriesMachine, guest: Guest, contract: Contract) -> None:
    """P29: both are pending at once, the card first."""
    phb = machine.phbs.plug()
    card = phb.pci.plug("virtio-rng-pci")
    with guest.rtas_errd.killed():
        attempts = [device.unplug() for device in (card, phb)]
        assert attempts == [contract.silence(device, cause="rtas_errd absent") for device in (card, phb)]
    assert card.follow(attempts[0]) == contract.removal(card)
    assert phb.follow(attempts[1]) == contract.removal(phb)


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


@pytest.mark.parametrize(
    ("properties", "words"),
    [
        ({"index": 31}, r'"index" for PAPR PHB is too large \(max 30\)'),
        ({"index": -1}, r'"index" for PAPR PHB is mandatory|index.*expects'),
        ({"index": 0}, "PHB 0 already attached|PCI host bridges must have unique indexes"),
        ({"index": 1, "numa_node": 7}, "numa_node|NUMA"),
    ],
    ids=["too large", "none", "taken", "no such node"],
)
def test_a_bad_phb_is_refused(machine: PseriesMachine, properties: dict[str, Any], words: str) -> None:
    """P19."""
    with nothing_changes(machine), pytest.raises(QmpRefused, match=words):
        machine.phbs.plug(**properties)
