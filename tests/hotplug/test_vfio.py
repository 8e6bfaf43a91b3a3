"""A passed-through device: its host side is a vfio-user server of the test. What it is to the guest, and how it goes."""

from __future__ import annotations

import pytest

from pytest_spapr import Contract, Guest, Lane, PseriesMachine
from pytest_spapr.hotplug.vfio import PHB

from .passthrough import comes_and_goes, require_gone, require_used, say

pytestmark = [pytest.mark.usefixtures("passthrough"), pytest.mark.spapr(qemu_args=PHB)]


def test_it_carries_bytes_and_goes_and_comes_again(machine: PseriesMachine, guest: Guest, contract: Contract) -> None:
    """P17, S01: and its server sees each step, in order."""
    (uart,) = machine.vfio.plug()
    attempt = comes_and_goes(guest, contract, uart)
    assert uart.messages[:2] == ["VERSION", "GET_INFO"]
    # What is left for the host: interrupts off, reset, and nobody listens to errors any more.
    shown = [name for name in uart.messages_since(attempt.began) if name in ("RESET", "SET_IRQS")]
    assert "RESET" in shown
    assert shown[-1] == "SET_IRQS"
    assert guest.run("true").status == 0
    require_used(guest, machine.vfio.replug(uart))


def test_a_guest_without_rtas_errd_keeps_it_and_uses_it(machine: PseriesMachine, guest: Guest, contract: Contract) -> None:
    """S02."""
    (uart,) = machine.vfio.plug()
    require_used(guest, uart)
    with guest.rtas_errd.stopped():
        attempt = uart.unplug()
        assert attempt == contract.silence(uart, cause="rtas_errd absent")
        assert uart.unplug() == contract.repeat(uart)
        say(guest, uart, "still-here")
    assert uart.follow(attempt) == contract.removal(uart)
    require_gone(guest, uart, attempt.began)


def test_functions_come_with_function_0_and_go_with_it(machine: PseriesMachine, guest: Guest, contract: Contract) -> None:
    """S07: each function has a server, and so a container, of its own; on pseries the slot goes as a whole all the same."""
    zero, one = machine.vfio.plug(functions=2)
    require_used(guest, zero, one)
    attempt = one.unplug()
    assert attempt == contract.silence(one, cause="function 0 stays")
    say(guest, one, "still-here")
    removal = zero.unplug()
    assert removal == contract.removal(zero)
    assert one.follow(attempt) == contract.removal(one)
    for function in (zero, one):
        require_gone(guest, function, attempt.began)
    deleted = [record.data["data"].get("device") for record in machine.timeline.since(removal.began, Lane.EVENT) if record.data]
    assert [device for device in deleted if device in (zero.id, one.id)] == [one.id, zero.id]


def test_a_function_alone_is_not_shown_to_the_guest(machine: PseriesMachine, guest: Guest, contract: Contract) -> None:
    """S07: topology must match: function 0 or nothing. Both come when function 0 does."""
    one = machine.vfio.plug_function(slot=7, function=1)
    assert one.peer.connected
    assert one.address not in guest.pci.functions()
    assert one.unplug() == contract.unasked_removal(one)
