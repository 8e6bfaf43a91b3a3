"""A passed-through device that is broken on the host's side: its unplug completes all the same, and the guest is well."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor, wait

import pytest

from pytest_spapr import Contract, Guest, PseriesMachine
from pytest_spapr.hotplug.vfio import PHB, VfioFunction
from pytest_spapr.vfio.protocol import Command

from .passthrough import await_message, events, read_soon, require_gone, require_used, said, vendor

pytestmark = [pytest.mark.usefixtures("passthrough"), pytest.mark.spapr(qemu_args=PHB)]

# QEMU's own limit of a server's answer, x-msg-timeout.
_TIMEOUT = 5.0


@pytest.fixture
def uart(machine: PseriesMachine, guest: Guest) -> VfioFunction:
    """A device that the guest uses."""
    (uart,) = machine.vfio.plug()
    require_used(guest, uart)
    return uart


@pytest.mark.spapr_slow
def test_a_reset_that_is_never_answered_delays_the_removal(
    machine: PseriesMachine, guest: Guest, contract: Contract, uart: VfioFunction
) -> None:
    """S04: by QEMU's own limit, no more; meanwhile all of QEMU waits."""
    with uart.resets_unanswered() as fault:
        attempt = uart.unplug()
    assert attempt == contract.removal(uart)
    assert fault.hits == 1
    assert attempt.elapsed > _TIMEOUT
    assert said(machine, "timed out waiting for reply", attempt.began)
    require_gone(guest, uart, attempt.began)


@pytest.mark.spapr_slow
def test_a_reset_that_is_answered_too_late_is_a_broken_connection(
    machine: PseriesMachine, guest: Guest, contract: Contract, uart: VfioFunction
) -> None:
    """S04: QEMU loses its place in the stream of a server that answers after the limit; ours hangs up before."""
    with uart.held(frozenset({Command.RESET})):
        attempt = uart.unplug()
        assert attempt == contract.removal(uart)
    assert "without an answer" in str(uart.await_disconnect(attempt.began).data)
    assert not said(machine, "unexpected reply|bad header", attempt.began)
    require_gone(guest, uart, attempt.began)


def test_a_device_that_reads_as_all_ones_is_removed(
    machine: PseriesMachine, guest: Guest, contract: Contract, uart: VfioFunction
) -> None:
    """S05."""
    assert vendor(guest, uart) == "1b36"
    with uart.all_ones():
        assert vendor(guest, uart) == "ffff"
        attempt = uart.unplug()
        assert attempt == contract.removal(uart)
    require_gone(guest, uart, attempt.began)


def test_a_device_that_answers_with_errors_is_removed(
    machine: PseriesMachine, guest: Guest, contract: Contract, uart: VfioFunction
) -> None:
    """S05: the guest reads ones, for its bus knows no errors."""
    with uart.refusing():
        assert vendor(guest, uart) == "ffff"
        attempt = uart.unplug()
        assert attempt == contract.removal(uart)
    require_gone(guest, uart, attempt.began)


def test_a_device_that_vanished_is_removed_and_comes_back(
    machine: PseriesMachine, guest: Guest, contract: Contract, uart: VfioFunction
) -> None:
    """S06: QEMU tells nobody, the guest runs on and reads ones."""
    before = machine.timeline.mark()
    uart.vanish()
    assert vendor(guest, uart) == "ffff"
    assert machine.running
    assert events(machine, before) == []
    assert uart.unplug() == contract.removal(uart)
    require_gone(guest, uart, before)
    uart.come_back()
    require_used(guest, machine.vfio.replug(uart))


@pytest.mark.spapr_defect("vfio-broken-connection")
def test_a_device_that_vanished_at_its_work_is_removed(
    machine: PseriesMachine, guest: Guest, contract: Contract, uart: VfioFunction
) -> None:
    """S06: it has been asked something, and never reads that."""
    before = machine.timeline.mark()
    read_soon(guest, uart)
    uart.vanish(busy=True)
    uart.await_disconnect(before)
    assert vendor(guest, uart) == "ffff"
    assert uart.unplug() == contract.removal(uart)
    require_gone(guest, uart, before)


def test_while_answers_are_held_back_everything_waits_and_then_goes_on(
    machine: PseriesMachine, guest: Guest, contract: Contract, uart: VfioFunction
) -> None:
    """S08: the guest is blocked, and QEMU's monitor with it, shorter than the limit. A slow device is removed as any other."""
    before = machine.timeline.mark()
    with ThreadPoolExecutor(1) as pool:
        with uart.held():
            read_soon(guest, uart)
            await_message(machine, uart, "REGION_READ", before)
            answer = pool.submit(machine.status)
            assert not wait([answer], timeout=1.0).done
        assert answer.result(_TIMEOUT) == "running"
    with uart.slow(1.0):
        began = machine.timeline.now
        assert vendor(guest, uart) == "1b36"
        assert machine.timeline.now - began >= 1.0
    with uart.slow(0.05):
        attempt = uart.unplug()
        assert attempt == contract.removal(uart)
    assert not said(machine, "timed out", before)
    require_gone(guest, uart, attempt.began)


def test_a_device_that_answers_nothing_is_removed_once_it_is_gone(
    machine: PseriesMachine, guest: Guest, contract: Contract, uart: VfioFunction
) -> None:
    """S09: nothing comes of its unplug while the host's side hangs, and all of QEMU hangs with it; the end of that side frees both."""
    before = machine.timeline.mark()
    with uart.unanswered():
        with guest.rtas_errd.stopped():
            attempt = uart.unplug()
            assert attempt == contract.silence(uart, cause="rtas_errd absent")
            read_soon(guest, uart)
            await_message(machine, uart, "REGION_READ", before)
        assert said(machine, "timed out waiting for reply", before)
        uart.vanish()
    assert uart.follow(attempt) == contract.removal(uart)
    require_gone(guest, uart, before)
    assert guest.run("true").status == 0
