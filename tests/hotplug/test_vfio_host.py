"""A device of the host, passed through for real: only where ``--spapr-vfio-host`` names one."""

from __future__ import annotations

import pytest

from pytest_spapr import Contract, Guest, PseriesMachine
from pytest_spapr.hotplug.vfio import PHB

pytestmark = pytest.mark.spapr(qemu_args=PHB)


def test_it_comes_and_goes_and_comes_again(host_device: str, machine: PseriesMachine, guest: Guest, contract: Contract) -> None:
    """S17."""
    for _ in range(2):
        card = machine.vfio.plug_host(host_device)
        assert card.address in guest.pci.functions()
        assert card.unplug() == contract.removal(card)


def test_a_guest_without_rtas_errd_keeps_it(host_device: str, machine: PseriesMachine, guest: Guest, contract: Contract) -> None:
    """S17."""
    card = machine.vfio.plug_host(host_device)
    with guest.rtas_errd.stopped():
        attempt = card.unplug()
        assert attempt == contract.silence(card, cause="rtas_errd absent")
        assert card.unplug() == contract.repeat(card)
    assert card.follow(attempt) == contract.removal(card)


def test_a_reset_completes_its_unplug(host_device: str, machine: PseriesMachine, guest: Guest, contract: Contract) -> None:
    """S17."""
    card = machine.vfio.plug_host(host_device)
    with guest.rtas_errd.killed():
        attempt = card.unplug()
        assert attempt == contract.silence(card, cause="rtas_errd absent")
        machine.reset()
        assert card.follow(attempt) == contract.after(card, what="reset")
    card = machine.vfio.plug_host(host_device)
    assert card.unplug() == contract.removal(card)
