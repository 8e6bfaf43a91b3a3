"""Interrupts that cards take and give back: the machine has 3328 message-signalled ones for all of its PHBs."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from pytest_spapr import Contract, Guest, PseriesMachine
from pytest_spapr.errors import MachineError
from pytest_spapr.hotplug.pci import Pci, PciDevice

# A console of 511 ports has two queues for each and two more, and Linux wants an interrupt for each queue; so three of them.
PORTS, MANY = 511, 1024
# For its configuration and for all queues together: what virtio-pci makes do with.
FEW = 2


def plug(pci: Pci, ports: int = PORTS, *, wait: bool = True) -> PciDevice:
    """Plug a card that wants two interrupts for each port, and two more."""
    return pci.plug("virtio-serial-pci", wait=wait, max_ports=ports, vectors=2 * ports + 4)


def boot(machine: PseriesMachine) -> Guest:
    """Boot a machine that was plugged with cards before; their driver is built in with some kernels."""
    machine.boot()
    guest = machine.guest
    guest.run("modprobe virtio_console || test -d /sys/bus/virtio/drivers/virtio_console").check()
    return guest


def taken(guest: Guest, card: PciDevice) -> int:
    """Return how many interrupts the guest has for a card."""
    return len(guest.run(f"ls /sys/bus/pci/devices/{card.address}/msi_irqs").check().stdout.split())


@pytest.mark.spapr_slow
def test_interrupts_that_are_used_up_come_back_with_the_card(
    launch_machine: Callable[..., PseriesMachine], contract: Contract
) -> None:
    """P34: one that comes after another has gone has all that it wants, and one that comes too late makes do with few."""
    machine = launch_machine(boot=False)
    cards = [plug(machine.pci, wait=False) for _ in range(3)]
    guest = boot(machine)
    assert [taken(guest, card) for card in cards] == [MANY, MANY, MANY]
    assert cards[0].unplug() == contract.removal(cards[0])
    assert taken(guest, plug(machine.pci)) == MANY
    assert taken(guest, plug(machine.pci)) == FEW


@pytest.mark.spapr_defect("msi-run-out")
def test_interrupts_that_another_phb_has_used_up_are_refused(launch_machine: Callable[..., PseriesMachine]) -> None:
    """P34: Linux counts what a PHB's cards have, and not what those of others have: it asks for more than there are."""
    machine = launch_machine(boot=False)
    cards = [plug(pci, wait=False) for pci in (*[machine.pci] * 3, machine.phbs.plug().pci)]
    guest = boot(machine)
    assert sorted(taken(guest, card) for card in cards) == [FEW, MANY, MANY, MANY]


# hw/ppc/spapr_pci.h, SPAPR_MAX_PHBS: 31 with the machine's own.
@pytest.mark.spapr_slow
@pytest.mark.parametrize("phbs", [2, 30])
def test_cards_on_many_phbs_share_the_interrupts(
    launch_machine: Callable[..., PseriesMachine], contract: Contract, phbs: int
) -> None:
    """P19, P34: on as many as there can be, they have nearly all of them; no other PHB fits in, and each card can go."""
    machine = launch_machine(boot=False)
    ports = 51
    cards = [plug(machine.phbs.plug().pci, ports, wait=False) for _ in range(phbs)]
    if phbs == 30:
        with pytest.raises(MachineError, match="all 31 PHBs"):
            machine.phbs.plug()
    guest = boot(machine)
    assert len(guest.pci.host_bridges()) == phbs + 1
    assert [taken(guest, card) for card in cards] == [2 * (ports + 1)] * phbs
    # drmgr looks at all 256 connectors of each PHB, many times over.
    assert cards[-1].unplug(seconds=600) == contract.removal(cards[-1])
