"""Many plugs and unplugs, from several sides at once, and in turns with other kinds of devices."""

from __future__ import annotations

import json
import random
import socket
import threading
from pathlib import Path
from typing import Any, Self

import pytest

from pytest_spapr import Contract, Guest, LaunchMachine, PseriesMachine

from .disks import add_scsi, backing, guest_sum, host_sum, plug_disk
from .inventory import inventory, told


class Monitor:
    """One more client of QEMU, on a monitor of its own; a context manager."""

    def __init__(self, path: Path, seconds: float) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(seconds)
        self._socket.connect(str(path))
        self._lines = self._socket.makefile("rb")
        self._gone: set[str] = set()
        json.loads(self._lines.readline())
        self.execute("qmp_capabilities")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._lines.close()
        self._socket.close()

    def execute(self, command: str, **arguments: Any) -> None:
        self._socket.sendall(json.dumps({"execute": command, "arguments": arguments}).encode())
        while "return" not in (answer := self._read()):
            assert "error" not in answer, answer

    def await_gone(self, device: str) -> None:
        """Return when QEMU has told that a device is gone; each of its monitors is told of all."""
        while device not in self._gone:
            self._read()
        self._gone.discard(device)

    def _read(self) -> dict[str, Any]:
        message: dict[str, Any] = json.loads(self._lines.readline())
        if message.get("event") == "DEVICE_DELETED":
            self._gone.add(message["data"].get("device", ""))
        return message


@pytest.mark.parametrize("rounds", [25, pytest.param(250, marks=pytest.mark.spapr_slow)])
def test_many_monitors_at_once(launch_machine: LaunchMachine, tmp_path: Path, rounds: int) -> None:
    """P06: each of four clients plugs and unplugs disks of its own, in an order of its own. Afterwards all is as it was."""
    paths = [tmp_path / f"qmp{number}" for number in range(4)]
    args = tuple(arg for path in paths for arg in ("-qmp", f"unix:{path},server=on,wait=off"))
    machine = launch_machine(image=None, boot=False, qemu_args=args)
    card = machine.pci.plug("virtio-scsi-pci", wait=False)
    nodes = [[backing(machine, tmp_path / f"disk{client}{number}.raw") for number in range(4)] for client in range(4)]
    before = inventory(machine)
    failures: list[BaseException] = []

    def client(number: int) -> None:
        order = random.Random(number)
        try:
            with Monitor(paths[number], machine.budgets.qmp) as monitor:
                for turn in range(rounds):
                    some = order.sample(nodes[number], order.randint(1, 4))
                    for node in some:
                        model = (
                            {"driver": "scsi-hd", "bus": f"{card.id}.0"}
                            if turn % 2
                            else {"driver": "virtio-blk-pci", "bus": "pci.0"}
                        )
                        monitor.execute("device_add", id=f"on-{node}", drive=node, **model)
                    for node in order.sample(some, len(some)):
                        monitor.execute("device_del", id=f"on-{node}")
                        monitor.await_gone(f"on-{node}")
        except (OSError, ValueError, AssertionError) as error:
            failures.append(error)

    threads = [threading.Thread(target=client, args=(number,)) for number in range(len(paths))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert inventory(machine) == before
    assert len(told(machine, 0)) >= 4 * rounds


@pytest.mark.parametrize("breath", [False, True], ids=["at once", "one by one"])
@pytest.mark.parametrize("rounds", [200, pytest.param(3000, marks=pytest.mark.spapr_slow)])
def test_a_storm_without_a_guest(launch_machine: LaunchMachine, contract: Contract, rounds: int, breath: bool) -> None:
    """P07: each comes and goes, told once; without waiting for the end of one before the next, or with."""
    machine = launch_machine(image=None, boot=False)
    before = inventory(machine)
    execute = machine.qmp.execute
    for number in range(rounds):
        since = machine.timeline.mark()
        execute("device_add", {"driver": "virtio-rng-pci", "id": f"rng{number}", "bus": "pci.0"})
        execute("device_del", {"id": f"rng{number}"})
        if breath:
            machine.await_records(lambda r: r.event == "DEVICE_DELETED" and "device=" in r.text, 1, since, "the card's end")
    machine.await_records(lambda r: r.event == "DEVICE_DELETED" and "device=" in r.text, rounds, 0, "the cards' ends")
    assert sorted(told(machine, 0)) == sorted(f"rng{number}" for number in range(rounds))
    assert inventory(machine) == before
    card = machine.pci.plug("virtio-rng-pci", wait=False)
    assert card.unplug() == contract.unasked_removal(card)


@pytest.mark.parametrize("rounds", [10, pytest.param(600, marks=pytest.mark.spapr_slow)])
def test_a_storm_on_a_guest(machine: PseriesMachine, guest: Guest, tmp_path: Path, rounds: int) -> None:
    """P07: a disk behind an adapter comes and goes while the guest looks for it; at the end it is there, and right."""
    guest.run("modprobe virtio_scsi; modprobe sd_mod")
    # That of a whole Debian.
    others = guest.run("echo /dev/sd?").check().stdout.strip()
    card = machine.pci.plug("virtio-scsi-pci")
    node = backing(machine, tmp_path / "disk.raw")
    for _ in range(rounds):
        since = machine.timeline.mark()
        name = add_scsi(machine, card, node)
        machine.qmp.execute("device_del", {"id": name})
        machine.await_records(lambda r: r.event == "DEVICE_DELETED" and "device=" in r.text, 1, since, "the disk's end")
    add_scsi(machine, card, node)
    sums = f"for one in /dev/sd?; do test $one = '{others}' || sha256sum $one; done"
    script = f"until sum=$({sums}) && test $(echo $sum | wc -w) = 2; do usleep 50000; done 2> /dev/null; echo $sum"
    assert guest.run(script).check().stdout.split()[0] == host_sum(tmp_path / node)


@pytest.mark.parametrize("rounds", [1, pytest.param(7, marks=pytest.mark.spapr_slow)])
def test_disks_and_cores_in_turns(machine: PseriesMachine, guest: Guest, contract: Contract, tmp_path: Path, rounds: int) -> None:
    """X01: one of each comes, and one of each goes, in both orders."""
    for turn in range(rounds):
        disk = plug_disk(machine, tmp_path / f"disk{turn}.raw")
        core = machine.cores.plug()
        assert guest_sum(guest, disk.name(guest)) == host_sum(disk.path)
        for device in (disk.device, core) if turn % 2 == 0 else (core, disk.device):
            assert device.unplug() == contract.removal(device)
        machine.qmp.execute("blockdev-del", {"node-name": disk.node})
        assert guest.cpus.online() == {0}
