"""Disks of a machine: the host's file, QEMU's block node and the device on it, together; and what is on them, by both sides."""

from __future__ import annotations

import hashlib
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pytest_spapr import Deadline, Guest, PseriesMachine
from pytest_spapr.hotplug.pci import PciDevice

from .inventory import await_deleted

MIB = 1 << 20


@dataclass(frozen=True)
class Disk:
    """A disk behind a PCI slot of its own. :ivar path: the host's file. :ivar node: QEMU's name of it. :ivar device: the card."""

    path: Path
    node: str
    device: PciDevice

    def name(self, guest: Guest) -> str:
        """Return the guest's name of it, e.g. ``/dev/vda``."""
        (name,) = guest.pci.devices(self.device.address, "block")
        return f"/dev/{name}"


def backing(machine: PseriesMachine, path: Path, *, size: int = MIB, content: bytes | None = None, **options: Any) -> str:
    """Make a file, with random content unless told otherwise, and a block node of its name on it; return that."""
    path.write_bytes(secrets.token_bytes(size) if content is None else content)
    file = {"driver": "file", "filename": str(path), **options}
    machine.qmp.execute("blockdev-add", {"driver": "raw", "node-name": path.name, "file": file, **options})
    return path.name


def plug_disk(
    machine: PseriesMachine,
    path: Path,
    driver: str = "virtio-blk-pci",
    *,
    size: int = MIB,
    content: bytes | None = None,
    options: dict[str, Any] | None = None,
    **properties: Any,
) -> Disk:
    """Plug a disk and wait for it. :param options: of the block node. :param properties: of the device."""
    node = backing(machine, path, size=size, content=content, **(options or {}))
    return Disk(path, node, machine.pci.plug(driver, drive=node, **properties))


def host_sum(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def guest_sum(guest: Guest, device: str) -> str:
    """Return the sum of what the guest reads from a disk, and not from its memory."""
    return guest.run(f"blockdev --flushbufs {device}; sha256sum {device}").check().stdout.split()[0]


def scsi_adapter(machine: PseriesMachine) -> PciDevice:
    # Without a check: a kernel can have them built in.
    machine.guest.run("modprobe virtio_scsi; modprobe sd_mod")
    return machine.pci.plug("virtio-scsi-pci")


def add_scsi(machine: PseriesMachine, card: PciDevice, node: str, **properties: Any) -> str:
    """Put a disk on an adapter's bus and return its id."""
    machine.qmp.execute(
        "device_add", {"driver": "scsi-hd", "id": f"hd-{node}", "bus": f"{card.id}.0", "drive": node, **properties}
    )
    return f"hd-{node}"


def remove_scsi(machine: PseriesMachine, name: str) -> None:
    """Remove a scsi disk: no DRC and no drmgr has part in it, so that it is gone when QEMU answers; and its event has come."""
    since = machine.timeline.mark()
    machine.qmp.execute("device_del", {"id": name})
    await_deleted(machine, since, name)


def create_qcow2(machine: PseriesMachine, path: Path, size: int, *, backing: str | None = None) -> str:
    """Make an image by QEMU itself, and a block node of its name on it; return that.

    :param backing: the node that it is an overlay of.
    """
    path.touch()
    execute, since = machine.qmp.execute, machine.timeline.mark()
    file = f"{path.stem}-file"
    execute("blockdev-add", {"driver": "file", "filename": str(path), "node-name": file})
    execute("blockdev-create", {"job-id": "create", "options": {"driver": "qcow2", "file": file, "size": size}})
    machine.await_records(
        lambda r: r.event == "JOB_STATUS_CHANGE" and "status=concluded" in r.text, 1, since, "the end of the image's making"
    )
    assert [job for job in execute("query-jobs") if job["id"] == "create" and "error" in job] == []
    execute("job-dismiss", {"id": "create"})
    execute("blockdev-add", {"driver": "qcow2", "file": file, "node-name": path.name, "backing": backing})
    return path.name


def await_jobs(machine: PseriesMachine, since: int, count: int, *, ready: tuple[str, ...]) -> None:
    """Wait until so many block jobs have ended, and insist on their success. :param ready: those that end when they are told to."""
    told = {
        record.data["data"]["device"]
        for record in machine.await_records(lambda r: r.event == "BLOCK_JOB_READY", len(ready), since, "jobs to be ready")
        if record.data is not None
    }
    assert told == set(ready)
    for job in ready:
        machine.qmp.execute("block-job-complete", {"device": job})
    for record in machine.await_records(lambda r: r.event == "BLOCK_JOB_COMPLETED", count, since, "jobs to end"):
        assert record.data is not None
        assert "error" not in record.data["data"], record.text


def await_block(guest: Guest, address: str, count: int, deadline: Deadline) -> list[str]:
    """Return the names of a function's disks as soon as there are so many; a disk behind an adapter comes without a hotplug event."""
    while len(found := guest.pci.devices(address, "block")) != count:
        deadline.require(f"{count} disks behind {address}", f"there are {found}")
    return found
