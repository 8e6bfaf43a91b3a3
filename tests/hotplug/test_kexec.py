"""A guest that boots another kernel by itself: no reset, no CAS, and a gap in which nobody listens.

It is the crash kernel's boot, into memory that is its own. After ``kexec -e`` the guest died in one of four boots: the kernel that was
left found its memory overwritten [Linux 6.1.176, QEMU 11.1.3].
"""

from __future__ import annotations

import pytest

from pytest_spapr import Contract, GuestImage, Kind, Lane, LaunchMachine, PseriesMachine

from .inventory import events_since
from .kinds import plug
from .moments import await_record


@pytest.fixture
def machine(launch_machine: LaunchMachine, guest_image: GuestImage) -> PseriesMachine:
    """A machine whose guest has its own kernel and initramfs at hand, each as a disk, and has loaded them for its crash."""
    drives = [
        f"if=none,id={name},format=raw,readonly=on,file={str(path).replace(',', ',,')}"
        for name, path in (("kernel", guest_image.kernel), ("initrd", guest_image.initramfs))
    ]
    disks = [f"virtio-blk-pci,drive={name},bus=pci.0,addr={slot}" for slot, name in ((1, "kernel"), (2, "initrd"))]
    words = [word for drive, disk in zip(drives, disks, strict=True) for word in ("-drive", drive, "-device", disk)]
    return launch_machine(memory=1536, kernel_args="crashkernel=384M ignore_loglevel", qemu_args=tuple(words))


def into_the_gap(machine: PseriesMachine) -> None:
    """Have the guest leave its kernel for the other one, and the machine stand still in the code of kexec-tools between the two."""
    since = machine.timeline.mark()
    machine.guest.leave("echo c > /proc/sysrq-trigger")
    await_record(machine, since, "kexec", lambda record: record.lane is Lane.CONSOLE and "in purgatory" in record.text)
    machine.stop()
    assert machine.timeline.since(since, Lane.SERVICE) == []


@pytest.mark.spapr_slow
def test_what_is_asked_for_between_two_kernels_is_kept_for_the_second(machine: PseriesMachine, contract: Contract) -> None:
    """C39, M40, P30, X04: no CAS grants it and no reset: what is pending stays so, and the second kernel takes what is new."""
    guest = machine.guest
    boot = guest.read("/proc/sys/kernel/random/boot_id")
    cards = [machine.pci.plug("virtio-rng-pci") for _ in range(2)]
    # The second kernel's device tree is made now, of what the first one has.
    guest.run('kexec -c -p /dev/vda --initrd=/dev/vdb --command-line="$(cat /proc/cmdline)"', seconds=60).check()
    # The second kernel's init starts it anew.
    guest.ask("killall -KILL rtas_errd").check()
    before = cards[0].unplug()
    assert before == contract.silence(cards[0], cause="rtas_errd absent")
    into_the_gap(machine)
    since = machine.timeline.mark()
    between = cards[1].unplug()
    new = [plug(machine, kind, wait=False) for kind in (Kind.CORE, Kind.DIMM, Kind.PCI)]
    machine.cont()
    machine.await_ready(since)
    assert guest.read("/proc/sys/kernel/random/boot_id") != boot
    assert cards[1].follow(between) == contract.removal(cards[1])
    for device in new:
        device.await_configured(since)
    # Its event was the first kernel's, which had taken it.
    assert cards[0].waiting
    guest.drmgr.remove(cards[0].drcs[0])
    assert cards[0].follow(before) == contract.removal(cards[0])
    assert events_since(machine, since, "RESET") == []
