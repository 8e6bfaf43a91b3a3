"""A disk as an installer leaves it: partitions, grub in the first of them, and of what the plugin wants of a guest nothing.

What is on it is the disk of the recipe debian-12-disk, with its kernel.
"""

from __future__ import annotations

import io
import re
import struct
import tarfile
from pathlib import Path
from typing import Final

from pytest_spapr import GuestImage
from pytest_spapr.cache import Cache
from pytest_spapr.deadline import budgets
from pytest_spapr.debian.apt import AptState
from pytest_spapr.debian.unpack import Kind, members
from pytest_spapr.images import cpio
from pytest_spapr.machine import Harness, Machine
from pytest_spapr.progress import NullProgress
from pytest_spapr.qemu.argv import MachineSpec
from pytest_spapr.qemu.build import QemuBuild
from pytest_spapr.qemu.qmp import QmpLoop
from pytest_spapr.timeline import Timeline

_SECTOR: Final = 512
_MIB: Final = 1 << 20
_PREP, _LINUX, _BOOTABLE = 0x41, 0x83, 0x80
_MAKER: Final = "usr/bin/grub-mkimage"
_MODULES: Final = "usr/lib/grub/powerpc-ieee1275/"
_PACKAGES: Final = ("grub-common", "grub-ieee1275-bin")
# Of the kernel's, besides those of the recipe: what reads a CD.
_CD: Final = re.compile(r"lib/modules/.*/(cdrom|sr_mod|isofs)\.ko")
_GRUB: Final = """\
search --no-floppy --file --set=root /boot/initrd
linux /boot/vmlinux root=/dev/sda2 console=hvc0 quiet
initrd /boot/initrd
boot
"""
# What initramfs-tools' does, for one disk only.
_INIT: Final = """\
#!/bin/sh
export PATH=/usr/sbin:/usr/bin:/sbin:/bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
while read -r path; do insmod $path; done </etc/modules
while [ ! -b /dev/sda2 ]; do usleep 50000; done
mkdir -p /new
mount -t ext4 /dev/sda2 /new
# cloud-init looks for its CD before udev has begun.
mount -o bind /proc /new/proc
chroot /new /sbin/modprobe sr_mod
umount /new/proc
umount /proc
umount /sys
mount -o move /dev /new/dev
exec switch_root /new /sbin/init <>/new/dev/hvc0 >/new/dev/hvc0 2>&1
"""
_SSHD: Final = "PermitRootLogin yes\nPasswordAuthentication yes\nUsePAM no\nUseDNS no\n"
_NETWORK: Final = "[Match]\nName=e*\n[Network]\nDHCP=ipv4\n"
_DEBS: Final = "root/debs"
_INSTALL: Final = """
set -e
for block in /sys/block/vd*; do
    serial=$(cat $block/serial)
    for device in /dev/${block##*/}*; do ln -s $device /dev/$serial${device#/dev/${block##*/}}; done
done
modprobe crc32c_generic
modprobe ext4
mount -t ext4 /dev/disk2 /mnt
tar -x -f /dev/archive -C /mnt
mount -o bind /dev /mnt/dev
mount -t proc proc /mnt/proc
chroot /mnt /bin/bash -e <<'END' 2>&1
export PATH=/usr/sbin:/usr/bin:/sbin:/bin
systemctl disable --quiet pytest-spapr.service rtas_errd.service
systemctl enable --quiet systemd-networkd.service
depmod {release}
{more}
ssh-keygen -q -t ed25519 -N '' -f /etc/ssh/ssh_host_ed25519_key
grub-mkimage -O powerpc-ieee1275 -d /{modules} -p /boot -c /boot/grub.cfg -o /boot/core.elf \
    part_msdos ext2 search search_fs_file linux boot echo ls
END
dd if=/mnt/boot/core.elf of=/dev/disk1 bs=64k 2>/dev/null
umount /mnt/proc
umount /mnt/dev
umount /mnt
sync
"""
_CLOUD_INIT: Final = f"""
export DEBIAN_FRONTEND=noninteractive
apt-get install --quiet --yes --no-install-recommends -o APT::Sandbox::User=root /{_DEBS}/*.deb
rm -r /{_DEBS}
"""
_PREP_MIB: Final = 8


def install(
    target: Path, image: GuestImage, small: GuestImage, build: QemuBuild, cache: Cache, mirror: str, login: tuple[str, str] | None
) -> None:
    """Write the disk; half a minute under TCG, some minutes where cloud-init is installed.

    :param image: a whole Debian, see ``recipe debian-12-disk``. :param small: what runs while it is installed.
    :param login: root's password, and the public key that may log in as root. None: nobody may, and cloud-init is installed.
    """
    assert image.disk is not None
    _write(target, image.disk)
    archive = target.with_name("archive.tar")
    _pack(archive, image, cache, mirror, login)
    drives: list[str] = []
    for name, path in (("archive", archive), ("disk", target)):
        drives += ["-drive", f"file={path},format=raw,if=none,id={name},cache=unsafe"]
        drives += ["-device", f"virtio-blk-pci,drive={name},serial={name}"]
    accelerator = "kvm" if "kvm" in build.accelerators else "tcg"
    spec = MachineSpec(max_cpus=1, slots=0, max_memory=1024, accelerator=accelerator, qemu_args=tuple(drives))
    with QmpLoop() as loop:
        machine = Machine.start(Harness(build=build, loop=loop, budgets=budgets(accelerator)), spec, small, Timeline())
        try:
            more = _CLOUD_INIT if login is None else f"echo 'root:{login[0]}' | chpasswd"
            script = _INSTALL.replace("{more}", more).replace("{release}", image.kernel_release).replace("{modules}", _MODULES)
            machine.guest.run(script.strip(), seconds=1800).check()
            machine.quit()
        finally:
            machine.close()
    archive.unlink()


def _write(target: Path, root: Path) -> None:
    """Write partitions: one for the boot loader, and the file system of ``root``."""
    size = root.stat().st_size
    first, second = _MIB // _SECTOR, (1 + _PREP_MIB) * _MIB // _SECTOR
    table = bytearray(_SECTOR)
    table[446:462] = _partition(_BOOTABLE, _PREP, first, second - first)
    table[462:478] = _partition(0, _LINUX, second, size // _SECTOR)
    table[510:512] = b"\x55\xaa"
    with target.open("wb") as out, root.open("rb") as source:
        out.write(table)
        out.seek(second * _SECTOR)
        while block := source.read(_MIB):
            if block.count(0) == len(block):
                out.seek(len(block), io.SEEK_CUR)
            else:
                out.write(block)
        out.truncate(second * _SECTOR + size)


def _partition(state: int, kind: int, start: int, count: int) -> bytes:
    return struct.pack("<B3sB3sII", state, b"\xfe\xff\xff", kind, b"\xfe\xff\xff", start, count)


def _pack(archive: Path, image: GuestImage, cache: Cache, mirror: str, login: tuple[str, str] | None) -> None:
    """Write what is added to the disk: boot loader, kernel and initramfs, and who may log in, or cloud-init's packages."""
    kernel = f"linux-image-{image.kernel_release}"
    unpacked = (*_PACKAGES, kernel)
    apt = AptState(cache, mirror, ("bookworm",), "ppc64el", NullProgress())
    with cache.lock(apt.name):
        debs = apt.fetch(unpacked, lambda package: package.name in unpacked)
        missing = {} if login else apt.fetch(("cloud-init",), lambda package: package.name not in image.packages)
    initrd = image.initramfs.read_bytes() + cpio.archive({"init": cpio.file(_INIT.encode(), 0o755)})
    files = {
        "boot/vmlinux": (image.kernel.read_bytes(), 0o644),
        "boot/initrd": (initrd, 0o644),
        "boot/grub.cfg": (_GRUB.encode(), 0o644),
        "etc/ssh/sshd_config.d/pytest-spapr.conf": (_SSHD.encode(), 0o644),
        "etc/systemd/network/80-cards.network": (_NETWORK.encode(), 0o644),
    }
    if login:
        files["root/.ssh/authorized_keys"] = (f"{login[1]}\n".encode(), 0o600)
    for package, deb in missing.items():
        files[f"{_DEBS}/{package.name}.deb"] = (deb.read_bytes(), 0o644)
    for deb in debs.values():
        for member in members(deb, _is_added):
            if member.kind is Kind.FILE:
                files[member.path] = (member.data, member.mode)
    with tarfile.open(archive, "w", format=tarfile.GNU_FORMAT) as out:
        for path, (data, mode) in files.items():
            entry = tarfile.TarInfo(path)
            entry.size, entry.mode = len(data), mode
            out.addfile(entry, io.BytesIO(data))


def _is_added(path: str) -> bool:
    return path == _MAKER or path.startswith(_MODULES) or _CD.fullmatch(path) is not None
