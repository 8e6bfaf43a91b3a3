"""Several requests at once: of three kinds, and more than the guest has read of yet."""

from __future__ import annotations

import re
from typing import Final

import pytest

from pytest_spapr import Contract, Guest, Kind, PseriesMachine
from pytest_spapr.hotplug.device import Device

from .inventory import told
from .kinds import plug

#: LOG_NUMBER of arch/powerpc/kernel/rtasd.c: so many events the kernel keeps for rtas_errd.
_KEPT: Final = 64
# The head of a hotplug section in an event's log (struct hp_extended_log of hw/ppc/spapr_events.c), up to the connector's index.
_SECTION: Final = re.compile(rb"HP\x00.{9}(?P<drc>.{4})", re.DOTALL)


@pytest.mark.parametrize(
    ("cores", "dimms", "cards"),
    [(4, 4, 1), pytest.param(7, 4, 29, marks=pytest.mark.spapr_slow)],
    ids=["nine", "forty"],
)
def test_all_that_is_asked_for_at_once_is_given_up(
    machine: PseriesMachine, guest: Guest, contract: Contract, cores: int, dimms: int, cards: int
) -> None:
    """X02, X03: the events queue up while the machine stands still, kinds mixed and cores asked for twice; each is told once."""
    counts = ((Kind.DIMM, dimms), (Kind.PCI, cards), (Kind.CORE, cores))
    lists = [[plug(machine, kind) for _ in range(count)] for kind, count in counts]
    devices: list[Device] = [
        device for place in range(max(map(len, lists))) for kind in lists for device in kind[place : place + 1]
    ]
    cpus, blocks = guest.cpus.present(), guest.memory.blocks()
    since = machine.timeline.mark()
    with machine.paused():
        attempts = [device.unplug() for device in devices]
        assert told(machine, since) == []
        again = [core.unplug() for core in lists[2]]
        assert again == [contract.repeat(core) for core in lists[2]]
    assert [device.follow(one) for device, one in zip(devices, attempts, strict=True)] == [
        contract.removal(one) for one in devices
    ]
    assert sorted(told(machine, since)) == sorted(device.id for device in devices)
    assert len(guest.cpus.present()) == len(cpus) - cores
    assert len(guest.memory.blocks()) == len(blocks) - dimms
    # The guest's second answer for a core that has gone harms nobody, and what comes next is heard.
    dimm = machine.dimms.plug()
    assert dimm.unplug() == contract.removal(dimm)


def test_what_the_guest_has_not_read_of_when_more_comes_is_lost(
    machine: PseriesMachine, guest: Guest, contract: Contract
) -> None:
    """X03: of a PCI device the kernel keeps the news for rtas_errd in a ring. A request that fell out of it stays pending."""
    card = machine.pci.plug("virtio-rng-pci")
    with guest.rtas_errd.killed():
        attempt = card.unplug()
        assert attempt == contract.silence(card, cause="rtas_errd absent")
        briefs: list[int] = []
        for _ in range(_KEPT):
            brief = machine.pci.plug("virtio-rng-pci", slot=31, wait=False)
            briefs += brief.drcs
            machine.qmp.execute("device_del", {"id": brief.id})
        guest.hotplug_interrupts()
        # Each read gets one event, and waits where none is left.
        path = "/proc/powerpc/rtas/error_log"
        read = f"{{ dd if={path} bs=64k count={_KEPT} 2> /dev/null; timeout 1 cat {path}; }} | od -A n -v -t x1"
        log = guest.run(read).stdout
        kept = [int.from_bytes(found["drc"], "big") for found in _SECTION.finditer(bytes.fromhex(log))]
        assert kept == briefs
    assert card.waiting
    again = card.unplug()
    assert again == contract.repeat(card)
    guest.drmgr.remove(card.drcs[0])
    assert card.follow(attempt) == contract.removal(card)
