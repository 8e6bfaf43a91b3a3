"""Disks come and go: their formats, sizes and numbers, pauses and reboots, and what of the host's side outlives what of QEMU's."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from pytest_spapr import Contract, Deadline, Guest, Lane, LaunchMachine, PseriesMachine, QmpRefused
from pytest_spapr.hotplug.pci import PciDevice

from .disks import (
    MIB,
    Disk,
    add_scsi,
    await_block,
    backing,
    create_qcow2,
    guest_sum,
    host_sum,
    plug_disk,
    remove_scsi,
    scsi_adapter,
)
from .inventory import nothing_changes

TIB = 1 << 40


def await_blocks(machine: PseriesMachine, card: PciDevice, count: int) -> list[str]:
    return await_block(machine.guest, card.address, count, Deadline(machine.budgets.plug))


class TestVariety:
    """Formats and sizes."""

    @pytest.mark.parametrize("driver", ["scsi-hd", pytest.param("virtio-blk-pci", marks=pytest.mark.spapr_slow)])
    def test_a_huge_image_comes_and_goes(
        self, machine: PseriesMachine, guest: Guest, contract: Contract, tmp_path: Path, driver: str
    ) -> None:
        """P02: a hundred TiB in qcow2, of which the host has what was written; its end is written and read."""
        node = create_qcow2(machine, tmp_path / "huge.qcow2", 100 * TIB)
        if driver == "scsi-hd":
            card = scsi_adapter(machine)
            add_scsi(machine, card, node)
            (name,) = await_blocks(machine, card, 1)
        else:
            card = machine.pci.plug(driver, drive=node)
            (name,) = guest.pci.devices(card.address, "block")
        assert guest.read(f"/sys/block/{name}/size") == str(100 * TIB // 512)
        last = f"bs=64k seek={(100 * TIB >> 16) - 1} count=1"
        guest.run(f"yes last | dd of=/dev/{name} iflag=fullblock {last} conv=fsync 2>&1").check()
        assert (
            guest.run(f"dd if=/dev/{name} {last.replace('seek', 'skip')} iflag=direct 2>/dev/null | head -n 1").stdout == "last\n"
        )
        assert (tmp_path / "huge.qcow2").stat().st_size < 64 * MIB
        if driver == "scsi-hd":
            remove_scsi(machine, f"hd-{node}")
            await_blocks(machine, card, 0)
        else:
            assert card.unplug() == contract.removal(card)
        machine.qmp.execute("blockdev-del", {"node-name": node})

    @pytest.mark.parametrize("rounds", [5, pytest.param(100, marks=pytest.mark.spapr_slow)])
    def test_raw_and_qcow2_behind_one_adapter(self, machine: PseriesMachine, guest: Guest, tmp_path: Path, rounds: int) -> None:
        """P02: one of each, again and again, with other contents each time."""
        card = scsi_adapter(machine)
        qcow2 = create_qcow2(machine, tmp_path / "one.qcow2", MIB)
        for number in range(rounds):
            raw = backing(machine, tmp_path / f"disk{number}.raw")
            for node in (raw, qcow2):
                add_scsi(machine, card, node)
            first, second = (f"/dev/{name}" for name in await_blocks(machine, card, 2))
            both = {guest_sum(guest, name): name for name in (first, second)}
            source = both.pop(host_sum(tmp_path / raw))
            (target,) = both.values()
            guest.run(f"dd if={source} of={target} bs=64k conv=fsync 2>&1").check()
            assert guest_sum(guest, target) == host_sum(tmp_path / raw)
            for node in (raw, qcow2):
                remove_scsi(machine, f"hd-{node}")
            await_blocks(machine, card, 0)
            machine.qmp.execute("blockdev-del", {"node-name": raw})

    @pytest.mark.spapr_slow
    def test_a_disk_comes_and_goes_a_hundred_times(
        self, machine: PseriesMachine, guest: Guest, contract: Contract, tmp_path: Path
    ) -> None:
        """P02."""
        for number in range(100):
            disk = plug_disk(machine, tmp_path / f"disk{number}.raw")
            assert guest_sum(guest, disk.name(guest)) == host_sum(disk.path)
            assert disk.device.unplug() == contract.removal(disk.device)
            machine.qmp.execute("blockdev-del", {"node-name": disk.node})


class TestNumbers:
    """Many disks."""

    @pytest.mark.parametrize("rounds", [2, pytest.param(10, marks=pytest.mark.spapr_slow)])
    def test_eight_scsi_disks_keep_their_contents(
        self, machine: PseriesMachine, guest: Guest, tmp_path: Path, rounds: int
    ) -> None:
        """P03: what was written to each in one round is there in the next."""
        card = scsi_adapter(machine)
        nodes = [backing(machine, tmp_path / f"disk{number}.raw") for number in range(8)]
        written: set[str] = set()
        for turn in range(rounds):
            for target, node in enumerate(nodes):
                add_scsi(machine, card, node, **{"scsi-id": target})
            names = await_blocks(machine, card, 8)
            both = "sha256sum $d; dd if=/dev/urandom of=$d bs=64k count=1 conv=fsync"
            script = f"cd /dev; for d in {' '.join(names)}; do {both}; done 2> /dev/null"
            sums = {line.split()[0] for line in guest.run(script).check().stdout.splitlines()}
            for node in nodes:
                remove_scsi(machine, f"hd-{node}")
            await_blocks(machine, card, 0)
            assert len(sums) == 8
            assert turn == 0 or sums == written
            written = {host_sum(tmp_path / node) for node in nodes}
            assert not sums & written

    @pytest.mark.spapr_slow
    @pytest.mark.parametrize(("count", "rounds"), [(8, 10)])
    def test_disks_of_their_own_keep_their_contents(
        self, machine: PseriesMachine, guest: Guest, contract: Contract, tmp_path: Path, count: int, rounds: int
    ) -> None:
        """P03: all of them come; they go while the others are read."""
        for turn in range(rounds):
            disks = [plug_disk(machine, tmp_path / f"disk{turn}-{number}.raw") for number in range(count)]
            while disks:
                for disk in disks:
                    name = disk.name(guest)
                    guest.run(f"dd if=/dev/urandom of={name} bs=64k count=1 seek=2 conv=fsync 2>&1").check()
                    assert guest_sum(guest, name) == host_sum(disk.path)
                disk = disks.pop()
                assert disk.device.unplug() == contract.removal(disk.device)
                machine.qmp.execute("blockdev-del", {"node-name": disk.node})

    @pytest.mark.parametrize("count", [32, pytest.param(254, marks=pytest.mark.spapr_slow)])
    def test_many_disks_behind_one_adapter(self, machine: PseriesMachine, guest: Guest, tmp_path: Path, count: int) -> None:
        """P06: the guest has every one of them, and half of them can go; the others are still right."""
        card = scsi_adapter(machine)
        for number in range(count):
            node = backing(machine, tmp_path / f"disk{number}.raw", content=f"disk {number}\n".encode().ljust(4096))
            add_scsi(machine, card, node, **{"scsi-id": number % 128, "lun": number // 128})
        script = "cd /dev; for d in {}; do head -n 1 $d; done"
        names = await_blocks(machine, card, count)
        labels = guest.run(script.format(" ".join(names))).check().stdout.splitlines()
        assert sorted(labels) == sorted(f"disk {number}" for number in range(count))
        for number in range(0, count, 2):
            remove_scsi(machine, f"hd-disk{number}.raw")
        names = await_blocks(machine, card, count // 2)
        labels = guest.run(script.format(" ".join(names))).check().stdout.splitlines()
        assert sorted(labels) == sorted(f"disk {number}" for number in range(1, count, 2))


class TestPauses:
    """The machine stands still."""

    @pytest.mark.parametrize("rounds", [20, pytest.param(100, marks=pytest.mark.spapr_slow)])
    def test_what_comes_and_goes_in_a_pause(
        self, machine: PseriesMachine, guest: Guest, contract: Contract, tmp_path: Path, rounds: int
    ) -> None:
        """P04: QEMU asks nobody, and the guest never sees the disk. But the news of its coming stay; a reset takes them away."""
        node = backing(machine, tmp_path / "disk.raw")
        before = guest.pci.functions()
        with machine.paused():
            for _ in range(rounds):
                device = machine.pci.plug("virtio-blk-pci", drive=node, slot=9, wait=False)
                assert device.unplug() == contract.unasked_removal(device)
        assert guest.pci.functions() == before
        machine.reset()
        assert machine.pci.plug("virtio-rng-pci").configured
        assert guest.pci.functions().keys() > before.keys()

    @pytest.mark.spapr_slow
    def test_a_disk_that_went_before_the_guest_looked_keeps_drmgr(
        self, machine: PseriesMachine, guest: Guest, tmp_path: Path
    ) -> None:
        """P04, P07: drmgr waits half a minute for a card that it was told of, and all other cards wait for it."""
        node = backing(machine, tmp_path / "disk.raw")
        with machine.paused():
            since = machine.timeline.mark()
            gone = machine.pci.plug("virtio-blk-pci", drive=node, slot=9, wait=False)
            gone.unplug()
        machine.pci.plug("virtio-rng-pci")
        first = machine.await_records(
            lambda r: r.lane is Lane.SERVICE and re.match(r"drmgr: end \d+ -c pci -a", r.text) is not None,
            2,
            since,
            "drmgr's ends",
        )
        assert f"{gone.drcs[0]:#x}" in first[0].text
        assert not first[0].text.startswith("drmgr: end 0 ")
        assert first[1].text.startswith("drmgr: end 0 ")

    def test_what_comes_in_a_pause_is_there_after_it(
        self, machine: PseriesMachine, guest: Guest, contract: Contract, tmp_path: Path
    ) -> None:
        """P04: a disk and its node; it goes in another pause, and the guest hears of that when it runs."""
        since = machine.timeline.mark()
        node = backing(machine, tmp_path / "disk.raw")
        with machine.paused():
            device = machine.pci.plug("virtio-blk-pci", drive=node, wait=False)
        device.await_configured(since)
        disk = Disk(tmp_path / node, node, device)
        assert guest_sum(guest, disk.name(guest)) == host_sum(disk.path)
        with machine.paused():
            attempt = device.unplug()
            assert attempt == contract.silence(device, cause="machine paused")
        assert device.follow(attempt) == contract.after(device, what="resume")

    def test_a_scsi_disk_through_fifty_pauses(self, machine: PseriesMachine, guest: Guest, tmp_path: Path) -> None:
        """P01: it is written to all the while, and has all of it."""
        card = scsi_adapter(machine)
        add_scsi(machine, card, backing(machine, tmp_path / "disk.raw"))
        (name,) = await_blocks(machine, card, 1)
        write = f"dd if=/dev/urandom of=/dev/{name} bs=64k count=8 conv=fsync"
        guest.run(f"(until test -e /run/stop; do {write}; done; echo > /run/stopped) > /dev/null 2>&1 &").check()
        for _ in range(50):
            with machine.paused():
                assert machine.status() == "paused"
        guest.run("echo > /run/stop; until test -e /run/stopped; do usleep 10000; done").check()
        assert guest_sum(guest, f"/dev/{name}") == host_sum(tmp_path / "disk.raw")


@pytest.mark.spapr_slow
def test_a_disk_and_a_card_outlive_reboot_resize_and_shutdown(
    machine: PseriesMachine, guest: Guest, contract: Contract, tmp_path: Path
) -> None:
    """P01, P10, P14: what came is there after a reboot, has another size when it is given one, and is there after a shutdown."""
    disk = plug_disk(machine, tmp_path / "disk.raw")
    card = machine.pci.plug("virtio-net-pci", romfile="")
    machine.reboot()
    assert disk.device.configured
    assert guest.pci.devices(card.address, "net")
    name = disk.name(guest).removeprefix("/dev/")
    for size in (3 * MIB, MIB // 2):
        machine.qmp.execute("block_resize", {"node-name": disk.node, "size": size})
        guest.run(f"until grep -qx {size // 512} /sys/block/{name}/size; do usleep 10000; done").check()
        assert disk.path.stat().st_size == size
    assert guest_sum(guest, f"/dev/{name}") == host_sum(disk.path)
    since = machine.timeline.mark()
    guest.leave("poweroff -f")
    machine.await_records(lambda record: record.event == "SHUTDOWN", 1, since, "the guest's shutdown")
    machine.reset()
    assert guest_sum(guest, disk.name(guest)) == host_sum(disk.path)
    assert disk.path.stat().st_size == MIB // 2
    assert card.configured


class TestNodes:
    """What of the host's side outlives what of QEMU's."""

    def test_a_node_that_is_in_use_stays(self, machine: PseriesMachine, guest: Guest, contract: Contract, tmp_path: Path) -> None:
        """P05, P20: not while its disk is there, nor while that is pending. Afterwards it serves another disk, and then goes."""
        disk = plug_disk(machine, tmp_path / "disk.raw")
        with guest.rtas_errd.killed():
            attempt = disk.device.unplug()
            assert attempt == contract.silence(disk.device, cause="rtas_errd absent")
            with nothing_changes(machine):
                with pytest.raises(QmpRefused, match=rf"Node '?{disk.node}'? is (busy|in use)"):
                    machine.qmp.execute("blockdev-del", {"node-name": disk.node})
                # A second disk cannot have it either.
                with pytest.raises(QmpRefused, match=r"[Cc]onflict|in use|Permission"):
                    machine.pci.plug("virtio-blk-pci", drive=disk.node)
        assert disk.device.follow(attempt) == contract.removal(disk.device)
        again = Disk(disk.path, disk.node, machine.pci.plug("virtio-blk-pci", drive=disk.node))
        assert guest_sum(guest, again.name(guest)) == host_sum(disk.path)

    def test_a_plug_that_fails_leaves_the_node(self, launch_machine: LaunchMachine, tmp_path: Path) -> None:
        """P20: the node was there before and is there after it, not in use, and free to go."""
        machine = launch_machine(image=None, boot=False)
        node = backing(machine, tmp_path / "disk.raw")
        machine.pci.plug("virtio-rng-pci", slot=9)
        with nothing_changes(machine):
            with pytest.raises(QmpRefused, match=r"not found|does not have"):
                machine.pci.plug("virtio-blk-pci", drive=node, nonsense=1)
            with pytest.raises(QmpRefused, match="already occup"):
                machine.pci.plug("virtio-blk-pci", drive=node, slot=9)
        machine.qmp.execute("blockdev-del", {"node-name": node})
        with pytest.raises(QmpRefused, match=r"find"):
            machine.pci.plug("virtio-blk-pci", drive=node)
