"""Gets to know a disk of the user's own, by one boot of it: which kernel it has, and whether PCI hotplug works in it."""

from __future__ import annotations

import hashlib
import json
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Final

from pytest_spapr.deadline import budgets
from pytest_spapr.errors import BootFailed, ImageError
from pytest_spapr.images.disk import About, OwnDisk
from pytest_spapr.machine import Harness, Machine
from pytest_spapr.progress import Progress
from pytest_spapr.qemu.argv import MachineSpec
from pytest_spapr.slots import Slots
from pytest_spapr.timeline import Timeline

if TYPE_CHECKING:
    from pytest_spapr.qemu.build import QemuBuild

_FORMAT: Final = 1
_SEEDED: Final = (
    "\nWithout --spapr-ssh-key or --spapr-ssh-password-file the disk needs cloud-init, which takes our key from a seed."
)


def examine(disk: OwnDisk, build: QemuBuild, accelerator: str, answers: Path, progress: Progress) -> OwnDisk:
    """Return the disk with what is known of it. Boots it, for a minute or more under TCG, unless the same file was booted before.

    :param answers: a directory where what was found is kept, by the file's path, size and time.
    :raises MachineError: it does not come up, or lets nobody in. :raises GuestError: it cannot be used.
    """
    stored = answers / f"{_key(disk)}.json"
    with suppress(OSError, ValueError, TypeError):
        kept = json.loads(stored.read_text())
        return disk.known(About(str(kept["kernel_release"]), kept["page_size"], tuple(kept["lacks"])))
    progress.phase(f"booting {disk.name} once, to see what it is")
    try:
        about = _boot(disk, build, accelerator, progress)
    except BootFailed as error:
        raise BootFailed(f"{disk.directory}: {error}{_SEEDED if disk.seed else ''}", error.phase) from error
    progress.done()
    with suppress(OSError):
        answers.mkdir(parents=True, exist_ok=True)
        fresh = stored.with_suffix(".new")
        fresh.write_text(json.dumps(asdict(about)))
        fresh.replace(stored)
    return disk.known(about)


def _boot(disk: OwnDisk, build: QemuBuild, accelerator: str, progress: Progress) -> About:
    from pytest_spapr.qemu.qmp import QmpLoop

    spec = MachineSpec(accelerator=accelerator)
    slots = Slots.of_host()
    with slots.take(slots.weight(spec.vcpus, spec.memory), progress=progress), QmpLoop() as loop:
        machine = Machine.start(Harness(build=build, loop=loop, budgets=budgets(accelerator)), spec, disk, Timeline())
        try:
            assert machine.about is not None
            return machine.about
        finally:
            machine.close()


def _key(disk: OwnDisk) -> str:
    try:
        found = disk.directory.stat()
    except OSError as error:
        raise ImageError(f"{disk.directory}: {error.strerror}.") from error
    facts = [_FORMAT, str(disk.directory), found.st_size, found.st_mtime_ns, found.st_ino, disk.seed is not None]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()
