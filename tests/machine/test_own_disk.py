"""A disk of the user's own: one that grub boots, in which nobody has prepared anything for the plugin, and rtas_errd does not run."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import pytest

from pytest_spapr import GuestImage, LaunchMachine, Outcome
from pytest_spapr.cells import Cell
from pytest_spapr.config import Setting, Settings, Source
from pytest_spapr.debian.apt import file_sha256
from pytest_spapr.debian.mirror import find_mirror
from pytest_spapr.errors import BootFailed
from pytest_spapr.images import build as images
from pytest_spapr.images import keys, seed
from pytest_spapr.images.disk import open_disk
from pytest_spapr.images.login import Login, given_login
from pytest_spapr.images.recipe import DEFAULT_IMAGE, load
from pytest_spapr.private import private_directory
from pytest_spapr.progress import NullProgress
from pytest_spapr.qemu.build import QemuBuild
from pytest_spapr.supply import supply_contract, supply_image
from tests.machine.installed import install

pytestmark = pytest.mark.spapr_slow

_PASSWORD = "not a secret"


@dataclass(frozen=True)
class _Installed:
    """A disk, and what lets root in. :ivar sha256: of the disk as it was made."""

    raw: Path
    key: Path
    password_file: Path
    sha256: str


class _Installer(Protocol):
    def __call__(self, target: Path, login: tuple[str, str] | None) -> None:
        """Write a disk. :param login: of root; None: it has cloud-init."""


@pytest.fixture(scope="module")
def installer(guest_image: GuestImage, qemu_build: QemuBuild, spapr_cell: Cell) -> _Installer:
    if guest_image.disk is None:
        pytest.skip(f"the image {guest_image.name} has no disk: --spapr-image=debian-12-disk")
    cache = spapr_cell.cache()
    mirror = find_mirror(spapr_cell.settings.debian_mirror.value)
    small = images.build(load(DEFAULT_IMAGE), cache, lambda: mirror)
    return lambda target, login: install(target, guest_image, small, qemu_build, cache, mirror, login)


@pytest.fixture(scope="module")
def installed(installer: _Installer, tmp_path_factory: pytest.TempPathFactory) -> _Installed:
    directory = tmp_path_factory.mktemp("installed")
    key, password = directory / "key", directory / "password"
    pair = keys.generate()
    for path, data in ((key, pair.client_private), (password, f"{_PASSWORD}\n".encode())):
        path.touch(mode=0o600)
        path.write_bytes(data)
    raw = directory / "installed.raw"
    installer(raw, (_PASSWORD, pair.client_public))
    return _Installed(raw, key, password, file_sha256(raw))


def _named(settings: Settings, image: Path, **given: Path) -> Settings:
    """Return the settings of a run that was given these on its command line."""
    named: dict[str, Any] = {name: Setting(path, Source.COMMAND_LINE, name) for name, path in given.items()}
    return replace(settings, image=Setting(str(image), Source.COMMAND_LINE, f"--spapr-image={image}"), **named)


def test_what_the_kernel_does_is_done_and_what_rtas_errd_would_do_is_not(
    launch_machine: LaunchMachine, installed: _Installed, guest_image: GuestImage, qemu_build: QemuBuild, spapr_cell: Cell
) -> None:
    settings = _named(spapr_cell.settings, installed.raw, ssh_key=installed.key)
    disk = supply_image(settings, spapr_cell.cache(), NullProgress())
    assert (disk.kernel_release, disk.page_size, disk.lacks) == (
        guest_image.kernel_release,
        guest_image.page_size,
        ("rtas_errd",),
    )
    contract = supply_contract(settings, qemu_build, disk)
    machine = launch_machine(image=disk, boot=False)
    # Later nobody in the guest would take it.
    card = machine.pci.plug("virtio-rng-pci")
    machine.boot()
    assert machine.guest.read("/proc/1/comm") == "systemd"
    dimm, core = machine.dimms.plug(), machine.cores.plug()
    assert dimm.unplug() == contract.removal(dimm)
    assert core.unplug() == contract.removal(core)
    kept = card.unplug()
    assert kept == contract.removal(card)
    assert kept.outcome is Outcome.PENDING
    assert card.address in machine.guest.pci.functions()
    machine.guest.run("dd if=/dev/zero of=/boot/grub.cfg bs=1M count=8 conv=fsync; rm -rf /etc/ssh; sync").check()
    machine.close()
    assert file_sha256(installed.raw) == installed.sha256
    assert not list(private_directory().glob("disk-*"))


def test_a_qcow2_a_password_and_a_reboot(
    launch_machine: LaunchMachine, installed: _Installed, spapr_cell: Cell, tmp_path: Path
) -> None:
    by_key = _named(spapr_cell.settings, installed.raw, ssh_key=installed.key)
    copier = launch_machine(image=supply_image(by_key, spapr_cell.cache(), NullProgress()), boot=False)
    qcow2 = tmp_path / "installed.qcow2"
    since = copier.timeline.mark()
    copy = {"job-id": "copy", "device": "root", "target": str(qcow2), "sync": "full", "format": "qcow2"}
    copier.qmp.execute("drive-backup", copy)
    copier.await_records(lambda record: record.event == "BLOCK_JOB_COMPLETED", 1, since, "the copy")
    copier.close()
    before = file_sha256(qcow2)
    settings = _named(spapr_cell.settings, qcow2, ssh_password_file=installed.password_file)
    machine = launch_machine(image=supply_image(settings, spapr_cell.cache(), NullProgress()), start="boot")
    key = machine.guest.host_key
    machine.guest.run("echo mine >/root/note; sync").check()
    machine.reboot()
    assert machine.guest.read("/root/note") == "mine"
    assert machine.guest.host_key == key
    machine.close()
    assert file_sha256(qcow2) == before


def test_cloud_init_lets_us_in_and_gives_the_guest_the_key_that_we_know(
    launch_machine: LaunchMachine, installer: _Installer, spapr_cell: Cell, qemu_build: QemuBuild, tmp_path: Path
) -> None:
    raw = tmp_path / "cloud.raw"
    installer(raw, None)
    before = file_sha256(raw)
    settings = _named(spapr_cell.settings, raw)
    disk = supply_image(settings, spapr_cell.cache(), NullProgress())
    machine = launch_machine(image=disk, start="boot")
    assert machine.guest.host_key == seed.obtain(spapr_cell.cache()).host_key
    machine.guest.run("cloud-init status --wait", seconds=300)
    result = json.loads(machine.guest.read("/run/cloud-init/result.json"))["v1"]
    assert result["datasource"].startswith("DataSourceNoCloud [seed=/dev/sr0]")
    # This disk has no locales.
    assert [error for error in result["errors"] if "locale" not in error] == []
    dimm = machine.dimms.plug()
    assert dimm.unplug() == supply_contract(settings, qemu_build, disk).removal(dimm)
    machine.reboot()
    dimm = machine.dimms.plug()
    assert dimm.unplug() == supply_contract(settings, qemu_build, disk).removal(dimm)
    machine.close()
    assert file_sha256(raw) == before


def test_who_is_not_let_in_is_told_so(
    launch_machine: LaunchMachine, installed: _Installed, spapr_cell: Cell, tmp_path: Path
) -> None:
    wrong = tmp_path / "password"
    wrong.touch(mode=0o600)
    wrong.write_text("wrong\n")
    settings = _named(spapr_cell.settings, installed.raw, ssh_password_file=wrong)
    with pytest.raises(BootFailed, match="does not let root in with the password that was given") as refused:
        launch_machine(image=_unknown(settings), start="boot")
    assert "wrong" not in str(refused.value)


def test_a_disk_that_the_firmware_cannot_boot_is_told_at_once(launch_machine: LaunchMachine, tmp_path: Path) -> None:
    empty = tmp_path / "empty.raw"
    empty.write_bytes(bytes(1 << 20))
    with pytest.raises(BootFailed, match="its firmware finds nothing to boot on the disk: E3407"):
        launch_machine(image=open_disk(empty, Login(password=_PASSWORD)), start="boot")


def _unknown(settings: Settings) -> GuestImage:
    """Return the disk as it is before anybody has booted it."""
    login = given_login(settings)
    assert settings.image.value is not None
    assert login is not None
    return open_disk(Path(settings.image.value), login)
