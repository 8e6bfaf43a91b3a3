"""Makes a disk out of an archive of unpacked packages: a small guest unpacks it, and has dpkg configure the packages in it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

from pytest_spapr.deadline import budgets
from pytest_spapr.errors import DeadlineExpired, GuestError, ImageError
from pytest_spapr.machine import Harness, Machine
from pytest_spapr.progress import Progress
from pytest_spapr.qemu.argv import MachineSpec
from pytest_spapr.slots import Slots
from pytest_spapr.timeline import Timeline

if TYPE_CHECKING:
    from pytest_spapr.images.store import GuestImage
    from pytest_spapr.qemu.build import QemuBuild

#: Where an archive has the script that configures its packages.
CONFIGURE: Final = "/usr/lib/pytest-spapr/configure"

_MIB: Final = 2048
# Under TCG on a busy host; the whole takes 3 minutes on an idle one.
_SECONDS: Final = 2400.0
_LINES: Final = 15
_ROOT: Final = "/mnt"
# By their serial numbers: which is vda depends on the order in which the guest meets them.
_PREPARE: Final = """
set -e
for block in /sys/block/vd*; do
    serial=$(cat $block/serial)
    ln -s /dev/${block##*/} /dev/$serial
done
modprobe crc32c_generic
modprobe ext4
mke2fs -F -m 0 /dev/disk >/dev/null
mount -t ext4 -o noatime /dev/disk {root}
"""
_UNPACK: Final = "tar -x -f /dev/archive -C {root}"
_CONFIGURE: Final = """
set -e
for name in proc sys dev run; do mkdir -p {root}/$name; done
mount -t proc proc {root}/proc
mount -t sysfs sysfs {root}/sys
mount -o bind /dev {root}/dev
mount -t devpts devpts {root}/dev/pts
mount -t tmpfs tmpfs {root}/run
chroot {root} {configure} 2>&1 </dev/null
"""
_FINISH: Final = """
set -e
for name in run dev/pts dev sys proc; do umount {root}/$name; done
umount {root}
sync
"""


def install(archive: Path, disk: Path, build: QemuBuild, image: GuestImage, progress: Progress) -> None:
    """Make a file system on a raw disk, unpack the archive to it and configure its packages; about 3 minutes under TCG.

    :param archive: of ``images.rootfs``; its :data:`CONFIGURE` is run. :param disk: a raw file, as large as it is to be; all zeros.
    :param image: what the guest is, which only does this.
    :raises ImageError: the disk is too small, or a package could not be configured; with the last lines. :raises MachineError: the
        guest does not come up.
    """
    # Imported here: a run whose images are all there has no use for a monitor of its own.
    from pytest_spapr.qemu.qmp import QmpLoop

    accelerator = "kvm" if "kvm" in build.accelerators else "tcg"
    spec = MachineSpec(
        cpus=2, max_cpus=2, memory=_MIB, slots=0, max_memory=_MIB, accelerator=accelerator, qemu_args=_drives(archive, disk)
    )
    slots = Slots.of_host()
    with slots.take(slots.weight(spec.vcpus, spec.memory)), QmpLoop() as loop:
        progress.phase("starting a guest that makes the disk")
        harness = Harness(build=build, loop=loop, budgets=budgets(accelerator))
        machine = Machine.start(harness, spec, image, Timeline())
        try:
            progress.phase("unpacking to the disk")
            _run(machine, _PREPARE, "the disk cannot be prepared")
            _run(machine, _UNPACK, "the packages cannot be unpacked to the disk")
            progress.phase("configuring the disk's packages")
            _run(machine, _CONFIGURE, "the disk's packages cannot be configured")
            _run(machine, _FINISH, "the disk cannot be unmounted")
            machine.quit()
        finally:
            machine.close()


def _drives(archive: Path, disk: Path) -> tuple[str, ...]:
    words: list[str] = []
    # What is lost where the host fails is made anew: no write need wait for the host's disk.
    for name, path, options in (("archive", archive, "readonly=on"), ("disk", disk, "cache=unsafe")):
        file = str(path).replace(",", ",,")
        words += ["-drive", f"file={file},format=raw,if=none,id={name},{options}"]
        words += ["-device", f"virtio-blk-pci,drive={name},serial={name}"]
    return tuple(words)


def _run(machine: Machine, script: str, failure: str) -> None:
    command = script.replace("{root}", _ROOT).replace("{configure}", CONFIGURE).strip()
    try:
        done = machine.guest.run(command, seconds=_SECONDS)
    except (GuestError, DeadlineExpired) as error:
        raise ImageError(f"{failure}: {error}") from error
    if done.status != 0:
        said = "\n".join(f"  {line}" for line in (done.stdout + done.stderr).strip().splitlines()[-_LINES:])
        raise ImageError(f"{failure} (exit status {done.status}):\n{said}")
