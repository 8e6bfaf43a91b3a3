"""Who watches an unplug: several monitors, one that goes and comes back, nobody any more; and how children and the nameless are told."""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pytest_spapr import Contract, Deadline, Guest, Kind, LaunchMachine, PseriesMachine, Timeline
from pytest_spapr.machine import Harness
from pytest_spapr.qemu.qmp import Qmp

from .inventory import await_deleted, events_since, told
from .kinds import plug


class Second:
    """A second monitor, whose client can go and come back. :ivar timeline: what its client has heard, since it last came."""

    def __init__(self, path: Path, harness: Harness) -> None:
        self._path = path
        self._harness = harness
        self.timeline: Timeline
        self.qmp: Qmp

    def come(self) -> None:
        self.timeline = Timeline()
        client = socket.socket(socket.AF_UNIX)
        client.connect(str(self._path))
        self.qmp = Qmp.connect(client, self._harness.loop, self.timeline, Deadline(10), seconds=30)

    def go(self) -> None:
        self.qmp.close()

    def deleted(self) -> list[dict[str, Any]]:
        """Return what DEVICE_DELETED has told this client; all that came before now."""
        self.qmp.execute("query-status")
        return [record.data["data"] for record in self.timeline.since(0) if record.event == "DEVICE_DELETED" and record.data]


@pytest.fixture
def watched(
    launch_machine: LaunchMachine, spapr_harness: Harness, tmp_path_factory: pytest.TempPathFactory
) -> tuple[PseriesMachine, Second]:
    """A machine with a second monitor that has a client."""
    path = tmp_path_factory.mktemp("qmp") / "s"
    chardev = f"socket,id=second,path={path},server=on,wait=off"
    machine = launch_machine(start="boot", qemu_args=("-chardev", chardev, "-mon", "chardev=second,mode=control"))
    second = Second(path, spapr_harness)
    second.come()
    return machine, second


def test_each_monitor_hears_it_once_and_one_that_was_away_hears_no_more(
    watched: tuple[PseriesMachine, Second], contract: Contract
) -> None:
    """X05: who asks may go before the answer; who comes back is not told what happened meanwhile, but can see it."""
    machine, second = watched
    dimms = [machine.dimms.plug() for _ in range(3)]
    since = machine.timeline.mark()
    assert dimms[0].unplug() == contract.removal(dimms[0])
    assert second.deleted() == [event["data"] for event in events_since(machine, since, "DEVICE_DELETED")]
    # It asks, and is gone before the guest can answer.
    with machine.paused():
        second.qmp.execute("device_del", {"id": dimms[1].id})
        second.go()
        since = machine.timeline.mark()
    await_deleted(machine, since, dimms[1].id)
    second.come()
    assert second.deleted() == []
    assert not dimms[1].configured
    # It comes back while its request is pending.
    with machine.paused():
        second.qmp.execute("device_del", {"id": dimms[2].id})
        second.go()
        second.come()
        since = machine.timeline.mark()
    await_deleted(machine, since, dimms[2].id)
    assert [data["device"] for data in second.deleted()] == [dimms[2].id]
    second.go()


def test_a_machine_that_quits_tells_of_no_removal(machine: PseriesMachine) -> None:
    """X05: what is pending ends with QEMU, without an event of its own."""
    devices = [plug(machine, kind) for kind in (Kind.CORE, Kind.DIMM, Kind.PCI)]
    machine.stop()
    since = machine.timeline.mark()
    for device in devices:
        device.unplug()
    machine.quit()
    assert machine.process.exit_status == 0
    assert [event["data"]["reason"] for event in events_since(machine, since, "SHUTDOWN")] == ["host-qmp-quit"]
    assert events_since(machine, since, "DEVICE_DELETED", "DEVICE_UNPLUG_GUEST_ERROR", "MEM_UNPLUG_ERROR") == []


def add_core(machine: PseriesMachine) -> None:
    slot = next(slot for slot in machine.cores.slots() if "qom-path" not in slot)
    machine.qmp.execute("device_add", {"driver": slot["type"], **slot["props"]})


def add_dimm(machine: PseriesMachine) -> None:
    machine.qmp.execute("object-add", {"qom-type": "memory-backend-ram", "id": "backend", "size": 256 << 20})
    machine.qmp.execute("device_add", {"driver": "pc-dimm", "memdev": "backend"})


def add_card(machine: PseriesMachine) -> None:
    machine.qmp.execute("device_add", {"driver": "virtio-rng-pci", "bus": "pci.0", "addr": "5"})


@pytest.mark.parametrize(
    ("add", "count"),
    [(add_core, "ls -d /sys/devices/system/cpu/cpu[0-9]*/topology | wc -l"), (add_dimm, "ls /sys/devices/system/memory | wc -l")],
    ids=["core", "dimm"],
)
def test_a_device_without_an_id_is_told_by_its_path(
    machine: PseriesMachine, guest: Guest, add: Callable[[PseriesMachine], None], count: str
) -> None:
    """X06: it goes by its path in QEMU's tree, and its event has that and no ``device``, which libvirt has no use for."""
    anonymous = "/machine/peripheral-anon"

    def children() -> set[str]:
        return {child["name"] for child in machine.qmp.execute("qom-list", {"path": anonymous})}

    before, seen = children(), guest.ask(count).stdout
    add(machine)
    [name] = children() - before
    deadline = Deadline(machine.budgets.plug)
    guest.settle()
    while guest.ask(count).stdout == seen:
        deadline.require(f"the guest to have {name}", f"it counts {seen.strip()} still")
        guest.settle()
    since = machine.timeline.mark()
    path = f"{anonymous}/{name}"
    machine.qmp.execute("device_del", {"id": path})
    gone = machine.await_records(lambda r: r.event == "DEVICE_DELETED" and r.text.endswith(f"path={path}"), 1, since, "its event")
    assert gone[0].data is not None
    assert gone[0].data["data"] == {"path": path}
    guest.settle()
    assert children() == before
    assert guest.ask(count).stdout == seen
    machine.qmp.execute("query-status")
    assert [e["data"]["path"] for e in events_since(machine, since, "DEVICE_DELETED")].count(path) == 1


def test_a_controllers_disk_is_told_by_its_own_name_before_it(machine: PseriesMachine, guest: Guest, contract: Contract) -> None:
    """X06: nobody asked for the disk; it has an id and so an event that names it, once and first. Alone, it goes without the guest."""
    guest.run("modprobe virtio_scsi && modprobe sd_mod").check()
    card = machine.pci.plug("virtio-scsi-pci")
    for name in ("disk1", "disk2"):
        machine.qmp.execute("blockdev-add", {"driver": "null-co", "node-name": name, "size": 1 << 20, "read-zeroes": True})
        machine.qmp.execute("device_add", {"driver": "scsi-hd", "id": name, "drive": name, "bus": f"{card.id}.0"})
    since = machine.timeline.mark()
    machine.qmp.execute("device_del", {"id": "disk2"})
    await_deleted(machine, since, "disk2")
    attempt = card.unplug()
    assert attempt == contract.removal(card)
    assert told(machine, since) == ["disk2", "disk1", card.id]
