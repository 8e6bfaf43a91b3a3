"""Devices of many models behind PCI slots: each is used for what it is there for, and then goes."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from pytest_spapr import Contract, Deadline, Guest, LaunchMachine, Presence, PseriesMachine, QmpRefused
from pytest_spapr.hotplug.attempt import Views
from pytest_spapr.hotplug.pci import Pci, PciDevice

from .disks import MIB, await_block, backing, guest_sum, host_sum
from .inventory import events_since, nothing_changes, told


@dataclass(frozen=True)
class Bench:
    """What a model is tried on. :ivar bus: where it is plugged. :ivar files: a directory of the host."""

    machine: PseriesMachine
    guest: Guest
    bus: Pci
    files: Path

    def plug(self, driver: str, *modules: str, **properties: Any) -> PciDevice:
        if modules:
            # A kernel that has one of them built in has no such module.
            self.guest.run("; ".join(f"modprobe {module}" for module in modules))
        return self.bus.plug(driver, **properties)

    def add(self, driver: str, bus: PciDevice, **properties: Any) -> str:
        """Add a device to the bus that a card makes, and return its id."""
        name = f"{bus.id}-{driver}"
        self.machine.qmp.execute("device_add", {"driver": driver, "id": name, "bus": f"{bus.id}.0", **properties})
        return name

    def disk_is_read_and_written(self, card: PciDevice, file: Path) -> None:
        """Both sides see what the other one wrote."""
        (name,) = await_block(self.guest, card.address, 1, Deadline(self.machine.budgets.plug))
        device = f"/dev/{name}"
        assert guest_sum(self.guest, device) == host_sum(file)
        before = file.read_bytes()
        self.guest.run(f"dd if=/dev/urandom of={device} bs=64k count=1 seek=3 conv=fsync 2>&1").check()
        after = file.read_bytes()
        assert guest_sum(self.guest, device) == host_sum(file)
        assert before[: 3 << 16] == after[: 3 << 16]
        assert before[3 << 16 : 4 << 16] != after[3 << 16 : 4 << 16]

    @contextmanager
    def chardev(self, name: str) -> Iterator[socket.socket]:
        """Give QEMU one end of a connection as a character device, and the other one to the test."""
        ours, theirs = socket.socketpair()
        with ours:
            with theirs:
                self.machine.qmp.give(theirs.fileno(), name)
            address = {"type": "fd", "data": {"str": name}}
            backend = {"type": "socket", "data": {"addr": address, "server": False}}
            self.machine.qmp.execute("chardev-add", {"id": name, "backend": backend})
            ours.settimeout(self.machine.budgets.command)
            yield ours


def scsi_adapter(bench: Bench) -> PciDevice:
    card = bench.plug("virtio-scsi-pci", "virtio_scsi", "sd_mod")
    file = bench.files / "scsi.raw"
    bench.add("scsi-hd", card, drive=backing(bench.machine, file))
    bench.disk_is_read_and_written(card, file)
    return card


def nvme(bench: Bench) -> PciDevice:
    file = bench.files / "nvme.raw"
    card = bench.plug("nvme", "nvme", drive=backing(bench.machine, file), serial="one")
    bench.disk_is_read_and_written(card, file)
    return card


def usb_storage(bench: Bench) -> PciDevice:
    card = bench.plug("qemu-xhci", "xhci_pci", "usb-storage", "sd_mod")
    file = bench.files / "usb.raw"
    bench.add("usb-storage", card, drive=backing(bench.machine, file))
    bench.disk_is_read_and_written(card, file)
    return card


def serial_ports(bench: Bench) -> PciDevice:
    """A port of the kind that guest agents use. It can go and come by itself; its adapter takes those with it that are there."""
    card = bench.plug("virtio-serial-pci", "virtio_console")
    for attempt in ("first", "second"):
        with bench.chardev(f"{card.id}-{attempt}") as host:
            port = bench.add("virtserialport", card, chardev=f"{card.id}-{attempt}", name="org.qemu.guest_agent.0")
            find = "grep -l guest_agent /sys/class/virtio-ports/*/name"
            script = f"until file=$({find}); do usleep 10000; done; port=/dev/$(basename ${{file%/name}}); exec 3<>$port"
            host.sendall(b"from the host\n")
            assert (
                bench.guest.run(f"{script}; read -r line <&3; echo $line; echo from the guest >&3").check().stdout
                == "from the host\n"
            )
            assert host.makefile("rb").readline() == b"from the guest\n"
            if attempt == "first":
                since = bench.machine.timeline.mark()
                bench.machine.qmp.execute("device_del", {"id": port})
                bench.machine.await_records(lambda r: r.event == "DEVICE_DELETED", 1, since, "the port's end")
                bench.machine.qmp.execute("chardev-remove", {"id": f"{card.id}-{attempt}"})
                bench.guest.run(f"while {find}; do usleep 10000; done").check()
    return card


def balloon(bench: Bench) -> PciDevice:
    card = bench.plug("virtio-balloon-pci", "virtio_balloon")
    machine = bench.machine
    full = machine.qmp.execute("query-balloon")["actual"]
    for target in (full - 64 * MIB, full):
        since = machine.timeline.mark()
        machine.qmp.execute("balloon", {"value": target})
        machine.await_records(lambda r: r.event == "BALLOON_CHANGE" and str(target) in r.text, 1, since, "the balloon's size")  # noqa: B023
    return card


def tablet(bench: Bench) -> PciDevice:
    card = bench.plug("virtio-tablet-pci", "virtio_input", "evdev")
    (event,) = [name for name in bench.guest.pci.devices(card.address, "input") if name.startswith("event")]
    script = f"(dd if=/dev/input/{event} of=/run/moved bs=24 count=3 2> /dev/null; echo > /run/moved.done) > /dev/null 2>&1 &"
    bench.guest.run(
        f"{script} until ls -l /proc/[0-9]*/fd 2> /dev/null | grep -q /dev/input/{event}; do usleep 10000; done"
    ).check()
    axes = [{"type": "abs", "data": {"axis": axis, "value": 0x1234}} for axis in ("x", "y")]
    bench.machine.qmp.execute("input-send-event", {"events": axes})
    moved = bench.guest.run(
        'until test -e /run/moved.done; do usleep 10000; done; hexdump -v -e \'24/1 "%02x" "\\n"\' /run/moved'
    )
    # struct input_event: 16 bytes of time, then EV_ABS, ABS_X or ABS_Y and the value; and EV_SYN.
    assert [line[32:] for line in moved.check().stdout.split()] == ["0300000034120000", "0300010034120000", "0000000000000000"]
    return card


def network_card(driver: str) -> Callable[[Bench], PciDevice]:
    def plug(bench: Bench) -> PciDevice:
        machine, guest = bench.machine, bench.guest
        machine.qmp.execute(
            "netdev_add", {"type": "user", "id": "more", "restrict": True, "net": "10.7.0.0/24", "host": "10.7.0.2"}
        )
        card = bench.plug(driver, *((driver,) if driver == "e1000e" else ()), netdev="more", romfile="")
        (name,) = guest.pci.devices(card.address, "net")
        guest.run(f"ip address add 10.7.0.15/24 dev {name}; ip link set {name} up").check()
        # QEMU's own network stack answers, as the gateway.
        guest.run(f"arping -f -w 20 -I {name} 10.7.0.2").check()
        return card

    return plug


_FINALIZED = pytest.mark.spapr_defect("xhci-never-finalized")

MODELS: dict[str, Callable[[Bench], PciDevice]] = {
    "virtio-scsi": scsi_adapter,
    "virtio-serial": serial_ports,
    "virtio-balloon": balloon,
    "virtio-tablet": tablet,
    "e1000": network_card("e1000"),
    "nvme": nvme,
    "usb-storage": usb_storage,
}
# No clones: see test_a_balloon_takes_nothing_from_other_clones.
_BALLOON = pytest.mark.spapr(start="boot")


@_BALLOON
@pytest.mark.spapr_slow
def test_all_models_are_used_and_go(machine: PseriesMachine, guest: Guest, contract: Contract, tmp_path: Path) -> None:
    """P01, P12, P14, P16: data go through each of them both ways; then they go together, behind one PHB, as drmgr has it go fast."""
    phb = machine.phbs.plug()
    bench = Bench(machine, guest, phb.pci, tmp_path)
    cards = [use(bench) for use in MODELS.values()]
    assert phb.unplug() == contract.removal(phb)
    for card in cards:
        assert card.views() == Views(Presence.ABSENT, Presence.ABSENT)
        assert not guest.pci.devices(card.address, "block")


@_BALLOON
@pytest.mark.spapr_slow
@pytest.mark.parametrize("model", [pytest.param(name, marks=_FINALIZED) if name == "usb-storage" else name for name in MODELS])
def test_a_model_is_used_and_goes_alone(
    machine: PseriesMachine, guest: Guest, contract: Contract, tmp_path: Path, model: str
) -> None:
    """P01, P12, P14, P16: with what is on the bus that it makes."""
    card = MODELS[model](Bench(machine, guest, machine.pci, tmp_path))
    assert card.unplug() == contract.removal(card)
    children = machine.qmp.execute("qom-list", {"path": "/machine/peripheral"})
    assert not [child["name"] for child in children if child["name"].startswith(card.id)]
    assert not guest.pci.devices(card.address, "block")


@_FINALIZED
def test_the_end_of_a_usb_controller_is_told(launch_machine: LaunchMachine, contract: Contract) -> None:
    """P16: as that of any card."""
    machine = launch_machine(image=None, boot=False)
    card, other = machine.pci.plug("qemu-xhci"), machine.pci.plug("virtio-rng-pci")
    machine.qmp.execute("device_del", {"id": card.id})
    # QEMU ends them in turn (call_rcu), so that there is nothing to wait for after the second one's end.
    assert other.unplug() == contract.unasked_removal(other)
    assert told(machine, 0) == [card.id, other.id]


@_BALLOON
@pytest.mark.spapr_slow
@pytest.mark.parametrize("model", ["virtio-balloon", "e1000"])
def test_a_device_comes_and_goes_a_hundred_times(
    machine: PseriesMachine, guest: Guest, contract: Contract, tmp_path: Path, model: str
) -> None:
    """P14, P16."""
    for _ in range(100):
        card = MODELS[model](Bench(machine, guest, machine.pci, tmp_path))
        assert card.unplug() == contract.removal(card)
        if model == "e1000":
            machine.qmp.execute("netdev_del", {"id": "more"})
    assert len(events_since(machine, 0, "DEVICE_DELETED")) >= 100


@pytest.mark.skipif(not os.access("/dev/vhost-vsock", os.R_OK | os.W_OK), reason="this host has no /dev/vhost-vsock")
def test_a_vsock_comes_and_goes(machine: PseriesMachine, guest: Guest, contract: Contract) -> None:
    """P16."""
    guest.run("modprobe vmw_vsock_virtio_transport").check()
    cid: dict[str, Any] = {"guest-cid": 3 + os.getpid()}
    card = machine.pci.plug("vhost-vsock-pci", **cid)
    assert guest.pci.functions()[card.address].driver == "virtio-pci"
    assert card.unplug() == contract.removal(card)


def test_a_console_stays(machine: PseriesMachine, guest: Guest) -> None:
    """P16: the terminals of the virtual IO bus cannot come or go while the machine runs, and what is on them goes on."""
    machine.qmp.execute("chardev-add", {"id": "more", "backend": {"type": "null", "data": {}}})
    with nothing_changes(machine):
        with pytest.raises(QmpRefused, match="Bus 'spapr-vio' does not support hotplugging"):
            machine.qmp.execute("device_add", {"driver": "spapr-vty", "id": "bad", "chardev": "more"})
        others = machine.qmp.execute("qom-list", {"path": "/machine/peripheral-anon"})
        terminals = [child["name"] for child in others if child["type"] == "child<spapr-vty>"]
        assert terminals
        for name in terminals:
            with pytest.raises(QmpRefused, match="Bus 'spapr-vio' does not support hotplugging"):
                machine.qmp.execute("device_del", {"id": f"/machine/peripheral-anon/{name}"})
    assert guest.read("/proc/consoles").startswith("hvc0")
