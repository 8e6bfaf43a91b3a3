"""PCI devices: rtas_errd and drmgr do the guest's part."""

from __future__ import annotations

from pathlib import Path

from pytest_spapr import Contract, Guest, PseriesMachine

from .disks import guest_sum, host_sum, plug_disk


def test_a_pci_device_comes_and_goes(machine: PseriesMachine, guest: Guest, contract: Contract) -> None:
    """P01, P16."""
    device = machine.pci.plug("virtio-rng-pci")
    assert guest.pci.functions()[device.address].driver == "virtio-pci"
    assert device.unplug() == contract.removal(device)


def test_a_disk_is_readable_until_it_is_gone(machine: PseriesMachine, guest: Guest, contract: Contract, tmp_path: Path) -> None:
    """P01, P20, P25: what is on the disk can be read while its removal is pending, and the node is free for another use afterwards."""
    disk = plug_disk(machine, tmp_path / "disk.raw")
    name, on_host = disk.name(guest), host_sum(disk.path)
    assert guest_sum(guest, name) == on_host
    with guest.rtas_errd.killed():
        attempt = disk.device.unplug()
        assert attempt == contract.silence(disk.device, cause="rtas_errd absent")
        assert guest_sum(guest, name) == on_host
    assert disk.device.follow(attempt) == contract.removal(disk.device)
    assert guest.run(f"test ! -e {name}").status == 0
    machine.qmp.execute("blockdev-del", {"node-name": disk.node})


def test_without_rtas_errd_nobody_answers_until_it_is_back(machine: PseriesMachine, guest: Guest, contract: Contract) -> None:
    """P25, P26: no event, a rejected repeat, and a late completion when a new rtas_errd reads the event that the kernel kept."""
    device = machine.pci.plug("virtio-rng-pci")
    with guest.rtas_errd.killed():
        attempt = device.unplug()
        assert attempt == contract.silence(device, cause="rtas_errd absent")
        assert device.unplug() == contract.repeat(device)
    assert device.follow(attempt) == contract.removal(device)


def test_a_stopped_rtas_errd_answers_late(machine: PseriesMachine, guest: Guest, contract: Contract) -> None:
    """P25."""
    device = machine.pci.plug("virtio-rng-pci")
    with guest.rtas_errd.stopped():
        attempt = device.unplug()
        assert attempt == contract.silence(device, cause="rtas_errd absent")
    assert device.follow(attempt) == contract.removal(device)


def test_a_drmgr_that_does_not_get_its_lock_gives_up_silently(machine: PseriesMachine, guest: Guest, contract: Contract) -> None:
    """P26: no DEVICE_UNPLUG_GUEST_ERROR for a PCI device, ever. The event is lost: only drmgr by hand, or a reset, helps."""
    device = machine.pci.plug("virtio-rng-pci")
    with guest.drmgr.lock_held():
        attempt = device.unplug()
        assert attempt == contract.silence(device, cause="drmgr locked")
        assert device.unplug() == contract.repeat(device)
    assert device.unplug() == contract.retry(device, cause="drmgr locked")
    guest.drmgr.remove(device.drcs[0])
    assert device.follow(attempt) == contract.removal(device)


def test_a_device_that_the_guest_never_configured_is_no_proof(machine: PseriesMachine, guest: Guest, contract: Contract) -> None:
    """P25: plugged while rtas_errd is away, the device is removed at once and the guest was never asked."""
    with guest.rtas_errd.killed():
        device = machine.pci.plug("virtio-rng-pci", wait=False)
        assert not device.configured
        attempt = device.unplug()
        assert attempt == contract.unasked_removal(device)
        assert attempt != contract.removal(device)
