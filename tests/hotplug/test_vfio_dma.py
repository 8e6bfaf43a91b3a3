"""A passed-through device with MSI-X and DMA: an NVMe controller, whose data must come through whole, both ways."""

from __future__ import annotations

import hashlib
import secrets
from typing import Literal

import pytest

from pytest_spapr import Contract, Guest, Lane, PseriesMachine
from pytest_spapr.hotplug.vfio import PHB, VfioFunction
from pytest_spapr.vfio.nvme import Nvme

from .passthrough import require_gone, vendor
from .udev import await_udev

pytestmark = [pytest.mark.usefixtures("passthrough"), pytest.mark.spapr(qemu_args=PHB)]

_SHARED = ("-object", "memory-backend-memfd,id=shared,size=1024M,share=on", "-machine", "memory-backend=shared")
_MIB = 1 << 20


def plug_disk(machine: PseriesMachine, guest: Guest, model: Literal["nvme", "nvme-intx"]) -> tuple[VfioFunction, Nvme]:
    """Plug a disk and wait until the guest's driver has found out about it."""
    guest.run("modprobe nvme").check()
    (disk,) = machine.vfio.plug(model=model)
    await_disk(guest)
    assert guest.pci.functions()[disk.address].driver == "nvme"
    assert isinstance(disk.model, Nvme)
    return disk, disk.model


def await_disk(guest: Guest) -> None:
    guest.run("until test -b /dev/nvme0n1; do usleep 20000; done").check()


def digest(data: bytes | bytearray) -> str:
    return hashlib.sha256(data).hexdigest()


def require_data_whole(guest: Guest, model: Nvme) -> None:
    """Have the guest read what is on the disk, and write what it made itself."""
    model.data[:_MIB] = secrets.token_bytes(_MIB)
    assert guest.run("dd if=/dev/nvme0n1 bs=1M count=1 2> /dev/null | sha256sum").check().stdout.split()[0] == digest(
        model.data[:_MIB]
    )
    guest.run("dd if=/dev/urandom of=/tmp/made bs=1M count=1 && dd if=/tmp/made of=/dev/nvme0n1 bs=1M seek=2 conv=fsync").check()
    assert guest.run("sha256sum /tmp/made").check().stdout.split()[0] == digest(model.data[2 * _MIB : 3 * _MIB])
    assert model.flushes > 0


def dma_by_message(machine: PseriesMachine, disk: VfioFunction) -> bool:
    """Whether any of the disk's data went through the connection itself."""
    data = [record.data or {} for record in machine.timeline.since(0, Lane.VFIO)]
    return any(one.get("command") in ("DMA_READ", "DMA_WRITE") for one in data if one["function"] == disk.peer.name)


@pytest.mark.parametrize(
    ("model", "shared"),
    [
        # A clone's memory is none that QEMU can pass.
        pytest.param(
            "nvme-intx",
            True,
            marks=pytest.mark.spapr(start="boot", qemu_args=(*PHB, *_SHARED)),
            id="INTx, through the passed files",
        ),
        pytest.param("nvme", False, marks=pytest.mark.spapr_defect("vfio-msix-removal"), id="MSI-X, by messages"),
    ],
)
def test_data_comes_through_whole_and_the_disk_goes(
    machine: PseriesMachine, guest: Guest, contract: Contract, model: Literal["nvme", "nvme-intx"], *, shared: bool
) -> None:
    """S16: DMA through the memory that QEMU passes, and by messages where it has none to pass."""
    disk, nvme = plug_disk(machine, guest, model)
    require_data_whole(guest, nvme)
    assert dma_by_message(machine, disk) is not shared
    assert disk.peer.mapped > 0
    interrupts = guest.run("grep nvme0 /proc/interrupts").check().stdout
    assert ("MSI" in interrupts) is (model == "nvme")
    attempt = disk.unplug()
    assert attempt == contract.removal(disk)
    require_gone(guest, disk, attempt.began)
    assert guest.run("test ! -e /dev/nvme0n1").status == 0


def test_a_disk_that_vanished_is_removed_and_comes_back(machine: PseriesMachine, guest: Guest, contract: Contract) -> None:
    """S06, S16: what is on it is there again."""
    disk, nvme = plug_disk(machine, guest, "nvme-intx")
    require_data_whole(guest, nvme)
    # It reads what was written to, and a server that has been asked something cannot go (known defect vfio-broken-connection).
    await_udev(guest)
    before = machine.timeline.mark()
    disk.vanish()
    assert vendor(guest, disk) == "ffff"
    assert disk.unplug() == contract.removal(disk)
    require_gone(guest, disk, before)
    disk.come_back()
    machine.vfio.replug(disk)
    await_disk(guest)
    require_data_whole(guest, nvme)
