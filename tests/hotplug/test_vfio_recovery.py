"""The host recovers from an error of a device that the guest has: QEMU stops the guest, and only a reset helps."""

from __future__ import annotations

import pytest

from pytest_spapr import Contract, Guest, PseriesMachine, QmpRefused
from pytest_spapr.hotplug.vfio import PHB

from .passthrough import await_event, require_gone, require_used, said, say, vendor

pytestmark = [pytest.mark.usefixtures("passthrough"), pytest.mark.spapr(qemu_args=PHB)]


def test_an_error_stops_the_guest_and_a_reset_completes_the_unplug(
    machine: PseriesMachine, guest: Guest, contract: Contract
) -> None:
    """S03: asked for while the host recovers, the device goes with the reset; the guest boots without it, and it can come again."""
    (uart,) = machine.vfio.plug()
    require_used(guest, uart)
    before = machine.timeline.mark()
    uart.error()
    await_event(machine, "STOP", before)
    assert machine.status() == "internal-error"
    assert said(machine, "Unrecoverable error detected", before)
    attempt = uart.unplug()
    assert attempt == contract.silence(uart, cause="host error")
    assert uart.unplug() == contract.repeat(uart)
    with pytest.raises(QmpRefused, match="Resetting the Virtual Machine is required"):
        machine.cont()
    machine.reset()
    assert uart.follow(attempt) == contract.after(uart, what="reset")
    require_gone(guest, uart, attempt.began)
    assert "RESET" in uart.messages_since(attempt.began)
    again = machine.vfio.replug(uart)
    require_used(guest, again)


@pytest.mark.parametrize("error", [pytest.param(False, marks=pytest.mark.spapr_slow), True], ids=["no error", "error"])
def test_a_reset_completes_an_unplug_that_was_pending(
    machine: PseriesMachine, guest: Guest, contract: Contract, *, error: bool
) -> None:
    """S02, S03: whether or not the host's error comes on top of it."""
    (uart,) = machine.vfio.plug()
    require_used(guest, uart)
    with guest.rtas_errd.killed():
        attempt = uart.unplug()
        assert attempt == contract.silence(uart, cause="rtas_errd absent")
        if error:
            uart.error()
            await_event(machine, "STOP", attempt.ended)
        machine.reset()
        assert uart.follow(attempt) == contract.after(uart, what="reset")
    require_gone(guest, uart, attempt.began)


def test_one_function_vanishes_and_the_error_of_the_other_one_stops_the_guest(
    machine: PseriesMachine, guest: Guest, contract: Contract
) -> None:
    """S10: without function 0 the other one works on; its error stops the guest of both, and both go with the reset."""
    zero, one = machine.vfio.plug(functions=2)
    require_used(guest, zero, one)
    before = machine.timeline.mark()
    zero.vanish()
    assert vendor(guest, zero) == "ffff"
    say(guest, one, "still-here")
    one.error()
    await_event(machine, "STOP", before)
    attempt = zero.unplug()
    assert attempt == contract.silence(zero, cause="host error")
    machine.reset()
    assert zero.follow(attempt) == contract.after(zero, what="reset")
    for function in (zero, one):
        require_gone(guest, function, before)
