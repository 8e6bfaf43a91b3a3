"""Block jobs, discards and removable media under disks that go."""

from __future__ import annotations

import os
import secrets
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from pytest_spapr import Contract, Deadline, Guest, LaunchMachine, PseriesMachine, QemuBuild
from pytest_spapr.hotplug.pci import PciDevice
from pytest_spapr.qemu.bound import bound

from .disks import MIB, add_scsi, await_block, await_jobs, backing, create_qcow2, guest_sum, host_sum, remove_scsi, scsi_adapter

_SIZE = 2 * MIB
# Bytes per second: a job that has begun does not end by itself.
_SLOW = 1


def overlay(machine: PseriesMachine, base: str, path: Path) -> str:
    """Put an empty image upon a base, and return its name."""
    return create_qcow2(machine, path, _SIZE, backing=base)


def slow(machine: PseriesMachine, command: str, job: str, **arguments: Any) -> None:
    machine.qmp.execute(command, {"job-id": job, "speed": _SLOW, **arguments})


def jobs(machine: PseriesMachine) -> set[str]:
    return {job["id"] for job in machine.qmp.execute("query-jobs")}


def adapter_with(machine: PseriesMachine, nodes: list[str]) -> PciDevice:
    card = scsi_adapter(machine)
    for target, node in enumerate(nodes):
        add_scsi(machine, card, node, **{"scsi-id": target})
    await_block(machine.guest, card.address, len(nodes), Deadline(machine.budgets.plug))
    return card


def test_jobs_outlive_their_disks(machine: PseriesMachine, guest: Guest, contract: Contract, tmp_path: Path) -> None:
    """P11: a commit, a mirror, a stream and a backup are at work when their disks go. All of them come to their end, and rightly."""
    execute = machine.qmp.execute
    bases = {job: backing(machine, tmp_path / f"{job}-base.raw", size=_SIZE) for job in ("commit", "mirror", "stream", "backup")}
    tops = {job: overlay(machine, base, tmp_path / f"{job}-top.qcow2") for job, base in bases.items()}
    targets = {job: backing(machine, tmp_path / f"{job}-target.raw", content=bytes(_SIZE)) for job in ("mirror", "backup")}
    card = adapter_with(machine, list(tops.values()))
    # What is in the overlays, in addition to what is below them.
    names = guest.pci.devices(card.address, "block")
    guest.run(
        "cd /dev; " + "; ".join(f"dd if=/dev/urandom of={name} bs=64k count=4 seek=7 conv=fsync 2>&1" for name in names)
    ).check()
    sums = {guest_sum(guest, f"/dev/{name}") for name in names}
    since = machine.timeline.mark()
    slow(machine, "block-commit", "commit", device=tops["commit"])
    slow(machine, "blockdev-mirror", "mirror", device=tops["mirror"], target=targets["mirror"], sync="full")
    slow(machine, "block-stream", "stream", device=tops["stream"])
    slow(machine, "blockdev-backup", "backup", device=tops["backup"], target=targets["backup"], sync="full")
    assert jobs(machine) == bases.keys()
    assert card.unplug() == contract.removal(card)
    # Each pause of the machine lets a job take a step, so that those may have ended that end by themselves.
    assert jobs(machine) >= {"commit", "mirror"}
    for job in jobs(machine):
        execute("block-job-set-speed", {"device": job, "speed": 0})
    await_jobs(machine, since, len(bases), ready=("commit", "mirror"))
    for path in (tmp_path / bases["commit"], tmp_path / targets["mirror"], tmp_path / targets["backup"]):
        assert host_sum(path) in sums
        sums.remove(host_sum(path))
    # The streamed one has all of it itself: its base can go.
    execute("blockdev-del", {"node-name": bases["stream"]})
    card = adapter_with(machine, [tops["stream"]])
    (name,) = guest.pci.devices(card.address, "block")
    assert {guest_sum(guest, f"/dev/{name}")} == sums


def test_a_disk_goes_while_it_is_discarded(machine: PseriesMachine, guest: Guest, tmp_path: Path) -> None:
    """P11: what the guest discards, the host gets back; and a disk that is discarded all the time can go."""
    path = tmp_path / "disk.raw"
    card = adapter_with(machine, [backing(machine, path, size=8 * MIB, discard="unmap")])
    (name,) = guest.pci.devices(card.address, "block")
    full = path.stat().st_blocks
    guest.run(f"blkdiscard -o {4 * MIB} -l {2 * MIB} /dev/{name}").check()
    assert path.stat().st_blocks == full - 2 * MIB // 512
    assert guest_sum(guest, f"/dev/{name}") == host_sum(path)
    guest.run(
        f"(while blkdiscard -o {4 * MIB} /dev/{name}; do echo > /run/began; done; echo > /run/over) > /dev/null 2>&1 & "
        "until test -e /run/began; do usleep 10000; done; test ! -e /run/over"
    ).check()
    remove_scsi(machine, f"hd-{path.name}")
    guest.run("until test -e /run/over; do usleep 10000; done").check()
    assert any(path.read_bytes()[: 4 * MIB])


def test_a_cdrom_and_its_medium(machine: PseriesMachine, guest: Guest, tmp_path: Path) -> None:
    """P11: a drive comes with a medium, which is read, ejected by the host, changed and read; then it goes with the medium in it."""
    execute = machine.qmp.execute
    guest.run("modprobe sr_mod")
    card = scsi_adapter(machine)
    read_only: dict[str, Any] = {"read-only": True}
    media = [backing(machine, tmp_path / f"medium{number}.iso", **read_only) for number in range(2)]
    execute("device_add", {"driver": "scsi-cd", "id": "drive", "bus": f"{card.id}.0", "drive": media[0]})
    (name,) = await_block(guest, card.address, 1, Deadline(machine.budgets.plug))
    assert guest_sum(guest, f"/dev/{name}") == host_sum(tmp_path / media[0])
    assert guest.run(f"dd if=/dev/zero of=/dev/{name} bs=2k count=1 conv=fsync").status != 0
    since = machine.timeline.mark()
    execute("blockdev-open-tray", {"id": "drive", "force": True})
    machine.await_records(lambda r: r.event == "DEVICE_TRAY_MOVED", 1, since, "the tray to open")
    execute("blockdev-remove-medium", {"id": "drive"})
    execute("blockdev-insert-medium", {"id": "drive", "node-name": media[1]})
    execute("blockdev-close-tray", {"id": "drive"})
    assert guest_sum(guest, f"/dev/{name}") == host_sum(tmp_path / media[1])
    remove_scsi(machine, "drive")
    await_block(guest, card.address, 0, Deadline(machine.budgets.plug))
    for medium in media:
        execute("blockdev-del", {"node-name": medium})


@contextmanager
def exported(build: QemuBuild, file: Path, path: Path) -> Iterator[None]:
    """Have the build's qemu-storage-daemon serve a file as a vhost-user disk on a socket inside the ``with`` block."""
    binary = build.binary.with_name("qemu-storage-daemon")
    if not binary.is_file():
        pytest.skip(f"{build.version_text}: no qemu-storage-daemon is beside it")
    # The loader's part of the command is that of both.
    command = [*build.command[: build.command.index(str(build.binary))], str(binary)]
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        export = f"type=vhost-user-blk,id=export,node-name=disk,writable=on,addr.type=fd,addr.str={listener.fileno()}"
        blockdev = f"driver=file,node-name=disk,filename={file}"
        daemon = subprocess.Popen(
            bound([*command, "--blockdev", blockdev, "--export", export]),
            env={**os.environ, **build.env},
            pass_fds=(listener.fileno(),),
        )
    try:
        yield
    finally:
        daemon.kill()
        daemon.wait()


def test_a_vhost_user_disk(launch_machine: LaunchMachine, qemu_build: QemuBuild, contract: Contract, tmp_path: Path) -> None:
    """P11: another process serves it, in the machine's own memory."""
    file = tmp_path / "disk.raw"
    file.write_bytes(secrets.token_bytes(MIB))
    shared = ("-object", "memory-backend-memfd,id=shared,size=1024M,share=on", "-machine", "memory-backend=shared")
    with exported(qemu_build, file, tmp_path / "socket"):
        machine = launch_machine(start="boot", qemu_args=shared)
        address = {"type": "unix", "data": {"path": str(tmp_path / "socket")}}
        backend = {"type": "socket", "data": {"addr": address, "server": False}}
        machine.qmp.execute("chardev-add", {"id": "daemon", "backend": backend})
        card = machine.pci.plug("vhost-user-blk-pci", chardev="daemon")
        (name,) = machine.guest.pci.devices(card.address, "block")
        assert guest_sum(machine.guest, f"/dev/{name}") == host_sum(file)
        machine.guest.run(f"dd if=/dev/urandom of=/dev/{name} bs=64k count=1 conv=fsync 2>&1").check()
        assert guest_sum(machine.guest, f"/dev/{name}") == host_sum(file)
        assert card.unplug() == contract.removal(card)
        machine.qmp.execute("chardev-remove", {"id": "daemon"})
