"""What the tests of passed-through devices have in common."""

from __future__ import annotations

import re

from pytest_spapr import Attempt, Contract, Guest, Lane, Presence, PseriesMachine
from pytest_spapr.deadline import Deadline
from pytest_spapr.hotplug.vfio import VfioFunction
from pytest_spapr.timeline import Record


def say(guest: Guest, uart: VfioFunction, text: str) -> None:
    """Send a line through a serial port of the guest, and see it arrive at the server."""
    before = len(uart.sent)
    guest.ask(f"printf {text} > /dev/{tty(guest, uart)}").check()
    assert uart.sent[before:] == text.encode()


def tty(guest: Guest, uart: VfioFunction) -> str:
    """Return the name of a serial port in the guest."""
    [name] = guest.pci.devices(uart.address, "tty")
    return name


def require_used(guest: Guest, *uarts: VfioFunction) -> None:
    """Have the guest's driver use each device: else QEMU would remove it unasked, and a pass would say nothing."""
    for uart in uarts:
        assert guest.pci.functions()[uart.address].driver == "serial"
        say(guest, uart, f"hello-{uart.slot}-{uart.function}")


def require_gone(guest: Guest, uart: VfioFunction, since: int) -> None:
    """Have everybody agree that a device has gone, its server too."""
    uart.await_disconnect(since)
    assert not uart.peer.connected
    assert uart.peer.mapped == 0
    assert uart.views().qemu is Presence.ABSENT
    assert uart.address not in guest.pci.functions()
    assert guest.ask(f"test ! -e /sys/bus/pci/devices/{uart.address}").status == 0


def comes_and_goes(guest: Guest, contract: Contract, uart: VfioFunction) -> Attempt:
    """Use a device and remove it, and return the attempt."""
    require_used(guest, uart)
    attempt = uart.unplug()
    assert attempt == contract.removal(uart)
    require_gone(guest, uart, attempt.began)
    return attempt


def vendor(guest: Guest, uart: VfioFunction) -> str:
    """Return what the guest reads now of the device's vendor number, from its configuration space.

    It is one message to a passed-through device: hexdump alone would fill its buffer first, which is a message for every word there is.
    """
    config = f"/sys/bus/pci/devices/{uart.address}/config"
    read = f"dd if={config} bs=2 count=1 2> /dev/null | hexdump -e '1/2 \"%04x\"'"
    return guest.ask(read).check().stdout.strip()


def read_soon(guest: Guest, uart: VfioFunction) -> None:
    """Have the guest read the device's vendor number when this command has been answered: later no answer would come through."""
    read = f"usleep 500000; dd if=/sys/bus/pci/devices/{uart.address}/config bs=4 count=1 of=/dev/null"
    guest.ask(f"setsid sh -c '{read}' > /dev/null 2>&1 < /dev/null &").check()


def await_event(machine: PseriesMachine, name: str, since: int) -> Record:
    """Wait for an event of QEMU after the cursor."""
    return machine.await_records(lambda record: record.event == name, 1, since, f"event {name}")[0]


def await_message(machine: PseriesMachine, device: VfioFunction, command: str, since: int, seconds: float = 60) -> Record:
    """Wait for a message to a device's server after the cursor."""

    def decide(record: Record) -> Record | None:
        data = record.data if record.lane is Lane.VFIO else None
        return record if data and data["function"] == device.peer.name and data.get("command") == command else None

    what = f"{command} at the server of {device.id}"
    return machine.timeline.wait(decide, since=since, deadline=Deadline(seconds), what=what)


def said(machine: PseriesMachine, pattern: str, since: int) -> bool:
    """Return whether QEMU has written such a line to stderr since the cursor."""
    return any(re.search(pattern, record.text) for record in machine.timeline.since(since, Lane.STDERR))


def events(machine: PseriesMachine, since: int) -> list[str]:
    """Return the names of the events since the cursor, in order."""
    return [record.event for record in machine.timeline.since(since, Lane.EVENT) if record.event]
