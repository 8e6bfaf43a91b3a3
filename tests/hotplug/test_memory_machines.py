"""Machines whose memory is special: a hash page table, much room, a card with a window onto all of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pytest_spapr import Contract, Guest, LaunchMachine, PseriesMachine
from pytest_spapr.guest.memory import LMB
from pytest_spapr.timeline import Lane

_MIB = 1 << 20
_TIB_IN_MIB = 1 << 20


@pytest.mark.spapr(cpu="power8", slots=4, max_memory=16384, qemu_args="-machine cap-hpt-max-page-size=16M")
@pytest.mark.spapr_slow
def test_a_hash_guests_page_table_grows_with_a_dimm(machine: PseriesMachine, guest: Guest, contract: Contract) -> None:
    """M26: from 1 to more than 8 GiB; with large pages (16 MiB) on the DIMM; and the guest comes up again with it."""
    assert "Hash" in guest.read("/proc/cpuinfo")
    assert guest.memory.info("Hugepagesize") == 16 * _MIB
    order = int(guest.read("/sys/kernel/debug/powerpc/hpt_order"))
    total = guest.memory.total()
    dimm = machine.dimms.plug(8192 + 256)
    grown = int(guest.read("/sys/kernel/debug/powerpc/hpt_order"))
    assert grown > order
    assert f"HPT resize to shift {grown} complete" in guest.dmesg()
    guest.run(
        "echo 8 > /proc/sys/vm/nr_hugepages && grep -x 8 /proc/sys/vm/nr_hugepages && echo 0 > /proc/sys/vm/nr_hugepages"
    ).check()
    machine.reboot()
    assert dimm.configured
    assert guest.memory.total() - total > dimm.size * _MIB * 0.95
    other = machine.dimms.plug()
    assert other.unplug() == contract.removal(other)


@pytest.mark.parametrize(
    ("firmware", "room"),
    [
        ("vof", _TIB_IN_MIB // 2),
        pytest.param("vof", _TIB_IN_MIB, marks=pytest.mark.spapr_slow),
        pytest.param("slof", _TIB_IN_MIB // 2, marks=pytest.mark.spapr_slow),
        pytest.param("slof", _TIB_IN_MIB, marks=pytest.mark.spapr_slow),
    ],
)
def test_a_guest_boots_with_room_for_much_memory(
    launch_machine: LaunchMachine, contract: Contract, firmware: str, room: int
) -> None:
    """M27: and a DIMM comes and goes there, at the end of that room, too."""
    machine = launch_machine(firmware=firmware, max_memory=room, start="boot")
    last = machine.dimms.plug(addr=room * _MIB - LMB)
    assert last.blocks == (room // 256 - 1,)
    for dimm in (machine.dimms.plug(), last):
        assert dimm.unplug() == contract.removal(dimm)


@pytest.mark.parametrize("room", [_TIB_IN_MIB // 2, _TIB_IN_MIB])
def test_the_firmware_comes_up_with_room_for_much_memory(launch_machine: LaunchMachine, room: int) -> None:
    """M27: SLOF, as far as its prompt."""
    machine = launch_machine(image=None, max_memory=room)
    machine.await_records(
        lambda record: record.lane is Lane.CONSOLE and "Welcome to Open Firmware" in record.text, 1, 0, "SLOF's greetings"
    )


def test_a_card_with_a_window_onto_all_memory_goes_on_while_dimms_come_and_go(
    machine: PseriesMachine, guest: Guest, contract: Contract, tmp_path: Path
) -> None:
    """M43: a disk with a dynamic DMA window (DDW) reads what it wrote, from pages of the DIMM and without it."""
    disk = tmp_path / "disk"
    disk.write_bytes(bytes(16 * _MIB))
    machine.qmp.execute("blockdev-add", {"driver": "file", "filename": str(disk), "node-name": "disk"})
    # 64-bit DMA through the IOMMU, which virtio goes past unless told otherwise.
    properties: dict[str, Any] = {"drive": "disk", "iommu_platform": True, "disable-legacy": "on"}
    machine.pci.plug("virtio-blk-pci", **properties)
    # All cards of the PHB share the window, the network's, too, and Linux tells of it in the PHB's node.
    guest.run("ls /proc/device-tree/pci*/ | grep -E 'linux,(direct|dma)64-ddr-window-info'").check()
    read = "echo 3 > /proc/sys/vm/drop_caches; md5sum < /dev/vda"
    for _ in range(2):
        dimm = machine.dimms.plug(512)
        # The page cache is movable memory, of which there is none but the DIMM's.
        guest.run("dd if=/dev/urandom of=/dev/vda bs=1M count=16 conv=fsync").check()
        before = guest.run(read).check().stdout
        assert dimm.unplug() == contract.removal(dimm)
        assert guest.run(read).check().stdout == before
