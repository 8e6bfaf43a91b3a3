"""A passed-through device in the rest of a machine's life: migration, reset, reboot, neighbours and end, its host side well or not."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from pytest_spapr import Contract, Guest, Lane, MachineError, PseriesMachine, QmpRefused
from pytest_spapr.hotplug.vfio import PHB, VfioFunction
from pytest_spapr.qemu.passthrough import DRIVER
from pytest_spapr.vfio.fault import Fault
from pytest_spapr.vfio.protocol import Command

from .inventory import nothing_changes
from .passthrough import (
    await_event,
    await_message,
    comes_and_goes,
    events,
    read_soon,
    require_gone,
    require_used,
    said,
    say,
    tty,
)

pytestmark = [pytest.mark.usefixtures("passthrough"), pytest.mark.spapr(qemu_args=PHB)]

# From the command to QEMU's end, whatever a server holds back.
_QUIT_SECONDS = 5.0


@pytest.mark.spapr_slow
def test_a_machine_migrates_when_its_passed_through_device_has_gone(
    machine: PseriesMachine, guest: Guest, contract: Contract
) -> None:
    """S11."""
    (uart,) = machine.vfio.plug()
    require_used(guest, uart)
    with pytest.raises(MachineError, match="cannot migrate: unplug it before"):
        machine.migrate()
    comes_and_goes(guest, contract, uart)
    machine.vfio.clear()
    machine.migrate()
    assert guest.run("true").status == 0


@pytest.mark.spapr_slow
def test_a_reset_waits_for_a_device_that_holds_its_answer(machine: PseriesMachine, guest: Guest, contract: Contract) -> None:
    """S12: QEMU's reset comes to its end when the device's does; the guest boots with the device, which goes as ever."""
    (uart,) = machine.vfio.plug()
    require_used(guest, uart)
    before = machine.timeline.mark()
    with ThreadPoolExecutor(1) as pool:
        with uart.held(frozenset({Command.RESET})):
            reset = pool.submit(machine.reset, wait=False)
            held = await_message(machine, uart, "RESET", before)
            assert not wait([reset], timeout=1.0).done
        reset.result()
    assert await_event(machine, "RESET", before).seq > held.seq
    assert not said(machine, "timed out", before)
    machine.await_ready(before)
    say(guest, uart, "after-the-reset")


def test_a_machine_quits_while_a_device_holds_its_answer(machine: PseriesMachine, guest: Guest) -> None:
    """S15: within 5 s, and with nothing left behind."""
    (uart,) = machine.vfio.plug()
    require_used(guest, uart)
    before = machine.timeline.mark()
    with ThreadPoolExecutor(1) as pool, uart.held():
        read_soon(guest, uart)
        await_message(machine, uart, "REGION_READ", before)
        answer = pool.submit(machine.status)
        assert not wait([answer], timeout=1.0).done
        began = machine.timeline.now
        machine.quit()
        assert machine.timeline.now - began < _QUIT_SECONDS
        assert answer.result() == "running"
    assert machine.process.exit_status == 0
    assert not [thread.name for thread in threading.enumerate() if thread.name == f"spapr-vfio-{uart.peer.name}"]


@pytest.mark.spapr_slow
@pytest.mark.parametrize("rounds", [2, 20])
def test_it_goes_and_comes_whatever_was_wrong_in_between(
    machine: PseriesMachine, guest: Guest, contract: Contract, rounds: int
) -> None:
    """P17, S13: each round with another fault, on the same server; the last one without."""
    (uart,) = machine.vfio.plug()
    faults: Iterator[Callable[[VfioFunction], AbstractContextManager[Fault]]] = itertools.cycle(
        [lambda device: device.slow(0.02), VfioFunction.all_ones, VfioFunction.refusing]
    )
    for fault in itertools.islice(faults, rounds - 1):
        require_used(guest, uart)
        with fault(uart):
            attempt = uart.unplug()
            assert attempt == contract.removal(uart)
        require_gone(guest, uart, attempt.began)
        uart = machine.vfio.replug(uart)
    comes_and_goes(guest, contract, uart)


@pytest.mark.spapr_slow
def test_it_goes_while_it_is_busy_after_a_reboot_a_pause_and_a_dump(
    machine: PseriesMachine, guest: Guest, contract: Contract, tmp_path: Path
) -> None:
    """P17."""
    (uart,) = machine.vfio.plug()
    machine.reboot()
    require_used(guest, uart)
    guest.run(f"setsid sh -c 'while echo busy; do :; done > /dev/{tty(guest, uart)}' > /dev/null 2>&1 < /dev/null &").check()
    with machine.paused():
        dump = {"paging": False, "protocol": f"file:{tmp_path}/dump", "begin": 0, "length": 16 << 20}
        machine.qmp.execute("dump-guest-memory", dump)
    since, before = machine.timeline.mark(), len(uart.sent)
    machine.await_records(
        lambda record: record.lane is Lane.VFIO and "REGION_WRITE at=bar0+0x0 " in record.text, 20, since, "the guest to write on"
    )
    assert b"busy" in uart.sent[before:]
    attempt = uart.unplug()
    assert attempt == contract.removal(uart)
    require_gone(guest, uart, attempt.began)


@pytest.mark.spapr(qemu_args=())
@pytest.mark.spapr_slow
def test_two_devices_share_a_phb_that_was_plugged(machine: PseriesMachine, guest: Guest, contract: Contract) -> None:
    """S14: two devices, two containers, one PHB: one goes alone, and the other one works."""
    (one,), (other,) = machine.vfio.plug(), machine.vfio.plug()
    assert one.domain == other.domain != 0
    require_used(guest, one, other)
    before = machine.timeline.mark()
    one.vanish()
    say(guest, other, "still-here")
    assert one.unplug() == contract.removal(one)
    require_gone(guest, one, before)
    say(guest, other, "and-alone")


def test_a_server_has_one_client(machine: PseriesMachine, guest: Guest) -> None:
    """S14: QEMU refuses a second device with the same server, at once, and the first one works on."""
    (uart,) = machine.vfio.plug()
    before = machine.timeline.mark()
    socket = {"type": "unix", "path": uart.peer.address}
    with nothing_changes(machine), pytest.raises(QmpRefused, match="Connection refused"):
        machine.pci.plug(DRIVER, wait=False, socket=socket)
    assert events(machine, before) == []
    require_used(guest, uart)
