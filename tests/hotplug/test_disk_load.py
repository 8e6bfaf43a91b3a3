"""Disks that go while they are written to: what was acknowledged is there, and what a busy one does to drmgr."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

import pytest

from pytest_spapr import Contract, Guest, Lane, MachineError, PseriesMachine
from pytest_spapr.hotplug.pci import PciDevice

from .disks import MIB, guest_sum, host_sum, plug_disk
from .inventory import events_since

_BLOCK: Final = 1 << 16
# Each block has its own number all over; the number is told when the disk has said that it has it (conv=fsync). The node is the writer's
# own: where /dev has lost the disk's between two blocks, dd would make a file there, and Linux 6.12 writes that for ever. It is in /dev
# too: systemd mounts /run with nodev.
_WRITER: Final = """
mknod /dev/kept b $(tr : ' ' < /sys/class/block/{disk}/dev)
n=0; while n=$((n + 1)); do
    yes "block $n" | dd of=/dev/kept bs=64k count=1 seek=$((n - 1)) iflag=fullblock oflag=direct conv=notrunc,fsync 2> /dev/null || break
    echo $n > /run/acknowledged
done; echo over > /run/over
"""


def start_writer(guest: Guest, disk: str) -> None:
    """Have the guest write numbered blocks to a disk, and return when it has written some."""
    guest.run(
        f"({_WRITER.format(disk=Path(disk).name)}) > /dev/null 2>&1 & until test -s /run/acknowledged; do usleep 10000; done"
    ).check()


def blocks_are_there(path: Path, count: int) -> None:
    data = path.read_bytes()
    for number in range(1, count + 1):
        line = f"block {number}\n".encode()
        assert data[(number - 1) * _BLOCK : number * _BLOCK] == (line * _BLOCK)[:_BLOCK], f"block {number} of {count} is lost"


class TestWritten:
    """The host's file has what the guest was told that it has."""

    def test_a_disk_goes_while_it_is_written_to(
        self, machine: PseriesMachine, guest: Guest, contract: Contract, tmp_path: Path
    ) -> None:
        """P08, P09: the writer gets an error, and each block before it is there."""
        disk = plug_disk(machine, tmp_path / "disk.raw", content=bytes(64 * MIB))
        start_writer(guest, disk.name(guest))
        assert disk.device.unplug() == contract.removal(disk.device)
        guest.run("until test -e /run/over; do usleep 10000; done").check()
        acknowledged = int(guest.read("/run/acknowledged"))
        assert acknowledged > 0
        blocks_are_there(disk.path, acknowledged)

    @pytest.mark.spapr_slow
    def test_a_reset_in_the_midst_of_writing_removes_it(
        self, machine: PseriesMachine, guest: Guest, contract: Contract, tmp_path: Path
    ) -> None:
        """P09: pending, and then the machine is reset under it."""
        disk = plug_disk(machine, tmp_path / "disk.raw", content=bytes(64 * MIB))
        with guest.rtas_errd.killed():
            start_writer(guest, disk.name(guest))
            attempt = disk.device.unplug()
            assert attempt == contract.silence(disk.device, cause="rtas_errd absent")
            acknowledged = int(guest.run("sync; cat /run/acknowledged").check().stdout)
            machine.reset(wait=False)
        machine.await_ready(attempt.ended)
        assert disk.device.follow(attempt) == contract.after(disk.device, what="reset")
        blocks_are_there(disk.path, acknowledged)

    @pytest.mark.parametrize("rounds", [1, pytest.param(60, marks=pytest.mark.spapr_slow)])
    def test_a_disk_goes_under_a_busy_file_system(
        self, machine: PseriesMachine, guest: Guest, contract: Contract, tmp_path: Path, rounds: int
    ) -> None:
        """P08, P24: drmgr asks nobody whether it is mounted. What was synced is on it when it comes again; the rest is an error."""
        guest.run("modprobe crc32c_generic; modprobe ext4")
        path = tmp_path / "disk.raw"
        content = bytes(32 * MIB)
        for turn in range(rounds):
            disk = plug_disk(machine, path, content=content)
            name = disk.name(guest)
            script = (
                "cd /mnt; n=0; while n=$((n + 1)); dd if=/dev/urandom of=$n bs=64k count=4 conv=fsync; do rm -f $((n - 8)); done"
            )
            ready = f"mke2fs {name} > /dev/null && mount {name} /mnt && dd if=/dev/urandom of=/mnt/kept bs=64k count=9 conv=fsync 2>&1"
            guest.run(f"{ready} && sync").check()
            kept = guest.run("sha256sum < /mnt/kept").check().stdout
            guest.run(f"({script}; echo > /run/over) > /dev/null 2>&1 & until test -e /mnt/3; do usleep 10000; done").check()
            assert disk.device.unplug() == contract.removal(disk.device)
            guest.run("until test -e /run/over; do usleep 10000; done; rm /run/over; umount /mnt").check()
            machine.qmp.execute("blockdev-del", {"node-name": disk.node})
            content = path.read_bytes()
            again = plug_disk(machine, path, content=content)
            guest.run(f"mount {again.name(guest)} /mnt").check()
            assert guest.run("sha256sum < /mnt/kept").check().stdout == kept
            guest.run("umount /mnt").check()
            if turn + 1 < rounds:
                assert again.device.unplug() == contract.removal(again.device)
                machine.qmp.execute("blockdev-del", {"node-name": again.node})


def plug_throttled(machine: PseriesMachine, path: Path) -> PciDevice:
    """Plug a disk that reads as ever, and writes a byte a second."""
    execute = machine.qmp.execute
    path.write_bytes(bytes(8 * MIB))
    execute("object-add", {"qom-type": "throttle-group", "id": "slow", "limits": {"bps-write": 1}})
    file = {"driver": "file", "filename": str(path)}
    execute("blockdev-add", {"driver": "throttle", "node-name": "slow-disk", "throttle-group": "slow", "file": file})
    device = machine.pci.plug("virtio-blk-pci", drive="slow-disk")
    # The first one is let through, the second one waits for it to have been a long time ago.
    machine.guest.run("(dd if=/dev/zero of=/dev/vda bs=64k count=8 oflag=direct; echo > /run/written) > /dev/null 2>&1 &").check()
    machine.guest.run("until read -r reads writes < /sys/block/vda/inflight && test $writes -gt 0; do usleep 10000; done").check()
    return device


class TestBusy:
    """A disk that does not answer keeps its driver from letting go."""

    def test_a_driver_that_does_not_let_go_keeps_drmgr(
        self, machine: PseriesMachine, guest: Guest, contract: Contract, tmp_path: Path
    ) -> None:
        """P23, P24: drmgr stays in its write to ``remove`` for as long as the disk has not answered, and tells nobody; then it goes."""
        device = plug_throttled(machine, tmp_path / "disk.raw")
        since = machine.timeline.mark()
        machine.qmp.execute("device_del", {"id": device.id})
        began = re.compile(rf"drmgr: begin .*{device.drcs[0]:#x}")
        machine.await_records(lambda r: r.lane is Lane.SERVICE and began.match(r.text) is not None, 1, since, "drmgr's start")
        # In the kernel, where no signal reaches it: its stack says for whom it waits.
        guest.run("until cat /proc/[0-9]*/stack 2> /dev/null | grep -q virtblk_remove; do usleep 10000; done").check()
        assert device.configured
        guest.run("kill -9 $(pidof drmgr); usleep 300000; cat /proc/[0-9]*/stack | grep -q virtblk_remove").check()
        assert events_since(machine, since, "DEVICE_DELETED") == []
        machine.qmp.execute("qom-set", {"path": "/objects/slow", "property": "limits", "value": {"bps-write": 0}})
        # QEMU looks at the new limits when it has let go what the old ones hold back, as it does before each stop.
        with machine.paused():
            pass
        # The event went with the drmgr that was killed: by hand, then.
        guest.run(f"while test -e /sys/bus/pci/devices/{device.address}; do usleep 10000; done").check()
        assert device.waiting

    @pytest.mark.spapr_defect("drmgr-isolates-busy-disk")
    def test_a_removal_that_is_under_way_is_not_waited_for(self, machine: PseriesMachine, guest: Guest, tmp_path: Path) -> None:
        """P23: somebody in the guest removes the busy disk already. drmgr fails at its own try, and gives the slot back all the same.

        QEMU ends the disk's requests as it takes the disk away, and the first removal goes on, at a disk that is not there.
        """
        device = plug_throttled(machine, tmp_path / "disk.raw")
        path = f"/sys/bus/pci/devices/{device.address}"
        guest.run(f"(echo 1 > {path}/remove; echo > /run/removed) > /dev/null 2>&1 &").check()
        guest.run("until cat /proc/[0-9]*/stack 2> /dev/null | grep -q virtblk_remove; do usleep 10000; done").check()
        since = machine.timeline.mark()
        machine.qmp.execute("device_del", {"id": device.id})
        gone = f"DEVICE_DELETED device={device.id} "
        machine.await_records(lambda record: record.text.startswith(gone), 1, since, "the disk's end")
        said = [record.text for record in machine.timeline.since(since, Lane.SERVICE)]
        assert any("failed to open" in line and f"{path.rpartition('/')[2]}/remove" in line for line in said)
        try:
            guest.run("until test -e /run/removed; do usleep 10000; done").check()
        except MachineError as error:
            raise AssertionError("the guest did not survive") from error
        assert not device.configured
        assert guest.run("test -e /dev/vda").status != 0


def test_a_disk_in_use_goes(machine: PseriesMachine, guest: Guest, contract: Contract, tmp_path: Path) -> None:
    """P24: nobody is asked. A device-mapper target is on the disk, as LVM and multipath have them, and swap space on that.

    Both are left without the disk, and get errors; its slot is free for the next one.
    """
    disk = plug_disk(machine, tmp_path / "disk.raw", size=2 * MIB)
    upper = f"modprobe dm-mod; echo 0 4096 linear {disk.name(guest)} 0 | dmsetup create upper"
    guest.run(f"{upper} && mkswap /dev/dm-0 && swapon /dev/dm-0 && grep dm-0 /proc/swaps").check()
    read = "dd if=/dev/dm-0 of=/dev/null bs=64k count=1 iflag=direct"
    guest.run(read).check()
    assert disk.device.unplug() == contract.removal(disk.device)
    assert guest.run(read).status != 0
    guest.run("swapoff /dev/dm-0 && dmsetup remove upper").check()
    again = plug_disk(machine, tmp_path / "again.raw", slot=disk.device.slot)
    assert guest_sum(guest, again.name(guest)) == host_sum(again.path)
