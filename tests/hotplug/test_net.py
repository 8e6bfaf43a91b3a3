"""Network cards: several at once, what carries them on the host's side, a bond, and a failover pair."""

from __future__ import annotations

from typing import Any

import pytest

from pytest_spapr import Contract, Guest, PseriesMachine, QmpRefused
from pytest_spapr.hotplug.pci import PciDevice

from .inventory import nothing_changes


def plug_card(machine: PseriesMachine, driver: str = "virtio-net-pci", *, net: int = 7, **properties: Any) -> PciDevice:
    """Plug a card with a network of its own, 10.NET.0.0/24, in which QEMU itself is host 2."""
    carrier = f"net{len(machine.qmp.execute('query-rx-filter')) if driver == 'virtio-net-pci' else 0}-{net}"
    network = {"net": f"10.{net}.0.0/24", "host": f"10.{net}.0.2"}
    machine.qmp.execute("netdev_add", {"type": "user", "id": carrier, "restrict": True, **network})
    return machine.pci.plug(driver, netdev=carrier, romfile="", **properties)


def interface(guest: Guest, card: PciDevice) -> str:
    (name,) = guest.pci.devices(card.address, "net")
    return name


def answers(guest: Guest, name: str, net: int = 7) -> bool:
    """Return whether QEMU answers on this interface. It has to be up."""
    return guest.run(f"arping -f -w 20 -I {name} 10.{net}.0.2").status == 0


def set_up(guest: Guest, name: str, net: int = 7) -> None:
    guest.run(f"ip address add 10.{net}.0.15/24 dev {name}; ip link set {name} up").check()


@pytest.mark.spapr_slow
def test_several_cards(machine: PseriesMachine, guest: Guest) -> None:
    """P14: three, one of them behind the IOMMU as a virtio device can be; all of them work, and do so after a reset."""
    modern: dict[str, Any] = {"disable-legacy": "on"}
    cards = [
        plug_card(machine, net=7),
        plug_card(machine, net=8, iommu_platform=True, **modern),
        plug_card(machine, "e1000", net=9),
    ]
    for net, card in enumerate(cards, 7):
        set_up(guest, interface(guest, card), net)
        assert answers(guest, interface(guest, card), net)
    machine.reset()
    for net, card in enumerate(cards, 7):
        set_up(guest, interface(guest, card), net)
        assert answers(guest, interface(guest, card), net)


def test_a_carrier_has_one_card(machine: PseriesMachine, guest: Guest, contract: Contract) -> None:
    """P14: a second card cannot have it while the first one is there, nor while that is pending; then it can."""
    card = plug_card(machine)
    (carrier,) = {line.split(":")[0].strip(" \\") for line in machine.qmp.hmp("info network").splitlines() if "-7:" in line}
    with guest.rtas_errd.killed():
        attempt = card.unplug()
        with nothing_changes(machine), pytest.raises(QmpRefused, match="in use"):
            machine.pci.plug("virtio-net-pci", netdev=carrier, romfile="")
    assert card.follow(attempt) == contract.removal(card)
    again = machine.pci.plug("virtio-net-pci", netdev=carrier, romfile="")
    set_up(guest, interface(guest, again))
    assert answers(guest, interface(guest, again))


def test_a_card_without_a_carrier_moves_with_the_machine(machine: PseriesMachine, guest: Guest, contract: Contract) -> None:
    """P14: what was plugged is there after a move, what was removed is not."""
    kept, removed = (machine.pci.plug(driver, romfile="") for driver in ("e1000", "virtio-net-pci"))
    assert removed.unplug() == contract.removal(removed)
    machine.migrate()
    assert not removed.configured
    assert interface(guest, kept)


def test_a_bonded_card_goes(machine: PseriesMachine, guest: Guest, contract: Contract) -> None:
    """P24: the bond does not keep it, and goes on with its other card."""
    cards = [plug_card(machine), machine.pci.plug("virtio-net-pci", netdev=second_carrier(machine), romfile="")]
    first, second = (interface(guest, card) for card in cards)
    bond = "/sys/class/net/bond0/bonding"
    guest.run(
        f"modprobe bonding max_bonds=1 mode=active-backup miimon=50; ip link set bond0 up; "
        f"echo +{first} > {bond}/slaves; echo +{second} > {bond}/slaves; echo {first} > {bond}/active_slave"
    ).check()
    set_up(guest, "bond0")
    assert guest.read(f"{bond}/active_slave") == first
    assert answers(guest, "bond0")
    assert cards[0].unplug() == contract.removal(cards[0])
    assert guest.read(f"{bond}/slaves") == second
    assert guest.read(f"{bond}/active_slave") == second
    assert answers(guest, "bond0")


def second_carrier(machine: PseriesMachine) -> str:
    machine.qmp.execute("netdev_add", {"type": "user", "id": "other", "restrict": True, "net": "10.7.0.0/24", "host": "10.7.0.2"})
    return "other"


def test_a_failover_pair_needs_pci_express(machine: PseriesMachine, guest: Guest) -> None:
    """P32: a pseries PHB has no PCI Express bus, so that no primary can come: QEMU rejects it. The standby alone is a card as any.

    Its guest says that it would have a pair. It moves with the machine, which waits for nobody's unplug.
    """
    mac = "52:54:00:12:34:99"
    guest.run("modprobe net_failover").check()
    since = machine.timeline.mark()
    standby = machine.pci.plug("virtio-net-pci", romfile="", mac=mac, failover=True)
    machine.await_records(lambda r: r.event == "FAILOVER_NEGOTIATED" and standby.id in r.text, 1, since, "the guest's word")
    with nothing_changes(machine), pytest.raises(QmpRefused, match="failover primary device must be on PCIExpress bus"):
        machine.pci.plug("e1000e", romfile="", mac=mac, failover_pair_id=standby.id)
    machine.migrate()
    assert not [record for record in machine.timeline.since(since) if record.event == "UNPLUG_PRIMARY"]
    assert standby.configured
