"""PCI bridges: they come and stay, and what is behind them goes."""

from __future__ import annotations

from pathlib import Path

import pytest

from pytest_spapr import Contract, Guest, LaunchMachine, Presence, PseriesMachine
from pytest_spapr.hotplug.pci import PciBridge, PciDevice

from .disks import backing, guest_sum, host_sum


def test_a_bridge_is_not_given_up_but_what_is_behind_it_is(
    machine: PseriesMachine, guest: Guest, contract: Contract, tmp_path: Path
) -> None:
    """P15, P28: a disk behind a bridge that came by itself works and goes; its slot takes another device; the bridge stays."""
    bridge = machine.pci.plug_bridge(1)
    assert bridge.unplug() == contract.rejection(bridge, cause="bridge")
    node = backing(machine, tmp_path / "disk.raw")
    disk = bridge.pci.plug("virtio-blk-pci", drive=node)
    (name,) = guest.pci.devices(disk.address, "block")
    assert guest_sum(guest, f"/dev/{name}") == host_sum(tmp_path / node)
    assert disk.unplug() == contract.removal(disk)
    assert bridge.unplug() == contract.rejection(bridge, cause="bridge")
    again = bridge.pci.plug("virtio-rng-pci", slot=disk.slot)
    assert guest.pci.functions()[again.address].driver == "virtio-pci"
    assert bridge.configured


@pytest.mark.spapr_defect("vof-bridge")
@pytest.mark.spapr(firmware="vof")
def test_a_bridge_outlives_a_reset(machine: PseriesMachine, guest: Guest) -> None:
    """P15: its bus and what is behind it are there again. (SLOF's are in the test of bridges of the boot.)"""
    bridge = machine.pci.plug_bridge(1)
    card = bridge.pci.plug("virtio-rng-pci")
    machine.reset()
    assert bridge.configured
    assert (card.guest_presence(), guest.pci.secondary_bus(bridge.address)) == (Presence.PRESENT, 1)


@pytest.mark.spapr_slow
def test_bridges_of_the_boot_and_a_migration(launch_machine: LaunchMachine, contract: Contract) -> None:
    """P15: eight bridges, the last one behind the one before it, with a card each, from the boot on; cards go there and elsewhere."""
    # Linux knows a bridge of the boot by the bus numbers that SLOF gives; VOF gives none.
    machine = launch_machine(boot=False, firmware="slof")
    bridges = [machine.pci.plug_bridge(chassis) for chassis in range(1, 8)]
    bridges.append(bridges[-1].pci.plug_bridge(8))
    cards = [bridge.pci.plug("virtio-rng-pci") for bridge in bridges]
    machine.boot()
    assert len({card.address.split(":")[1] for card in cards}) == 8
    assert all(device.configured for device in (*bridges, *cards))
    assert cards[-1].unplug() == contract.removal(cards[-1])
    machine.migrate()
    assert all(device.configured for device in (*bridges, *cards[:-1]))
    assert cards[0].unplug() == contract.removal(cards[0])


@pytest.mark.spapr_slow
def test_a_full_bus(machine: PseriesMachine, contract: Contract) -> None:
    """P15: all 31 slots behind a bridge, each twice."""
    bridge = machine.pci.plug_bridge(1)
    for _ in range(2):
        cards = [bridge.pci.plug("virtio-rng-pci") for _ in range(31)]
        assert [card.slot for card in cards] == list(range(1, 32))
        assert all(card.configured for card in cards)
        for card in cards:
            assert card.unplug() == contract.removal(card)


@pytest.mark.spapr_slow
@pytest.mark.spapr(firmware="slof")
def test_eight_bridges_come_with_what_is_behind_them(machine: PseriesMachine, contract: Contract) -> None:
    """P15: all of it while the guest runs."""

    def plug(chassis: int) -> tuple[PciBridge, PciDevice]:
        bridge = machine.pci.plug_bridge(chassis)
        return bridge, bridge.pci.plug("virtio-rng-pci")

    pairs = [plug(chassis) for chassis in range(1, 9)]
    for _, card in pairs:
        assert card.unplug() == contract.removal(card)
    machine.reset()
    assert all(bridge.configured for bridge, _ in pairs)
    assert all(bridge.pci.plug("virtio-rng-pci").configured for bridge, _ in pairs)
