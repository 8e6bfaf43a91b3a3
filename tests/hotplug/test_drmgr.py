"""drmgr ends before its work does."""

from __future__ import annotations

from pytest_spapr import Contract, Guest, PseriesMachine


def test_a_drmgr_that_is_killed_leaves_the_card_pending(machine: PseriesMachine, guest: Guest, contract: Contract) -> None:
    """P25, P26: the guest is without the card, QEMU waits; drmgr by hand takes up where the other one ended, for its lock went with it."""
    card = machine.pci.plug("virtio-rng-pci")
    guest.drmgr.kill_midway(card.address)
    attempt = card.unplug()
    assert attempt == contract.silence(card, cause="drmgr killed")
    assert guest.drmgr.lock_holder() is None
    guest.drmgr.remove(card.drcs[0])
    assert card.follow(attempt) == contract.removal(card)
