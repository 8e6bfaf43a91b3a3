"""A guest that is a whole Debian on a disk, as the recipe debian-12-disk makes it."""

from __future__ import annotations

import pytest

from pytest_spapr import Contract, Guest, GuestImage, LaunchMachine, PseriesMachine
from pytest_spapr.debian.apt import file_sha256
from pytest_spapr.timeline import Lane

_NOTE = "/usr/local/note"


@pytest.fixture(autouse=True)
def _whole_debian(guest_image: GuestImage) -> None:
    if guest_image.disk is None:
        pytest.skip(f"the image {guest_image.name} has no disk: --spapr-image=debian-12-disk")


def test_systemd_runs_and_no_unit_has_failed(guest: Guest) -> None:
    assert guest.read("/proc/1/comm") == "systemd"
    assert guest.run("systemctl --failed --no-legend --plain").check().stdout == ""
    for service in ("ssh", "rtas_errd", "systemd-udevd", "pytest-spapr"):
        assert guest.run(f"systemctl is-active {service}").stdout == "active\n", service


def test_all_packages_are_configured_and_apt_finds_nothing_amiss(guest: Guest) -> None:
    said = guest.run("dpkg-query --show --showformat '${db:Status-Abbrev} ${Package}\\n'").check().stdout.splitlines()
    assert len(said) > 100
    assert {line[:2] for line in said} == {"ii"}
    guest.run("apt-get check", seconds=120).check()


def test_the_disk_is_never_written_and_what_a_guest_writes_is_its_own(
    launch_machine: LaunchMachine, guest_image: GuestImage
) -> None:
    assert guest_image.disk is not None
    before = file_sha256(guest_image.disk)
    one, other = launch_machine(), launch_machine()
    one.guest.run(f"echo mine > {_NOTE}; rm /etc/hostname; dd if=/dev/zero of=/var/big bs=1M count=50; sync").check()
    assert one.guest.run("dd if=/dev/zero of=/dev/sda bs=512 count=1 conv=fsync").status != 0
    assert other.guest.run(f"test -e {_NOTE}").status != 0
    assert other.guest.read("/etc/hostname") == "pseries"
    for machine in (one, other):
        machine.close()
    assert file_sha256(guest_image.disk) == before


def test_udev_and_debians_own_drmgr_take_part_in_the_removal_of_a_card(
    machine: PseriesMachine, guest: Guest, contract: Contract
) -> None:
    card = machine.pci.plug(driver="virtio-rng-pci")
    assert (
        guest.run("readlink /usr/sbin/drmgr; dpkg-query --search /usr/libexec/drmgr /usr/sbin/drmgr").stdout.count("powerpc") == 1
    )
    since = machine.timeline.mark()
    assert card.unplug() == contract.removal(card)
    said = [record.text for record in machine.timeline.since(since, Lane.SERVICE)]
    assert [text for text in said if text.startswith("drmgr: begin -c pci -r")]
    assert [text for text in said if text.startswith("drmgr: end 0 ")]


def test_a_reboot_begins_with_the_disk_as_it_was(machine: PseriesMachine, guest: Guest, contract: Contract) -> None:
    guest.run(f"echo mine > {_NOTE}").check()
    machine.reboot()
    assert guest.run(f"test -e {_NOTE}").status != 0
    core = machine.cores.plug()
    assert core.unplug() == contract.removal(core)
