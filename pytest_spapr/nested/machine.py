"""A pseries machine in the nested host: a clone of a template that was made outside of it, where that is thirty times faster."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from secrets import token_hex
from typing import TYPE_CHECKING, Final, Self

from pytest_spapr.builds import store
from pytest_spapr.deadline import Budgets, Deadline
from pytest_spapr.errors import BuildError
from pytest_spapr.hotplug.pseries import PseriesMachine
from pytest_spapr.hotplug.vfio import PHB
from pytest_spapr.images.store import GuestImage
from pytest_spapr.machine import Harness
from pytest_spapr.nested import payload, relay
from pytest_spapr.nested.emulator import Emulator
from pytest_spapr.nested.host import Disk, VfioHost, disk_path
from pytest_spapr.qemu.argv import MachineSpec, Ram
from pytest_spapr.qemu.snapshot import restore_from
from pytest_spapr.templates.make import obtain
from pytest_spapr.templates.store import DEVICES, NoTemplate
from pytest_spapr.timeline import Timeline

if TYPE_CHECKING:
    from pytest_spapr.cache import Cache
    from pytest_spapr.progress import Progress

#: TCG in TCG, on a host of two cores that is busy.
BUDGETS: Final = Budgets(launch=300, boot=900, ssh=600, command=300, qmp=120, plug=900, unplug=900)
#: The one machine that there is a template of: small, with the PHB for passed-through devices. In TCG in TCG most of the time goes into
#: looking up pages after switches from process to process, which QEMU does faster in a hash table than in a radix tree.
SPEC: Final = MachineSpec(max_cpus=1, memory=512, max_memory=512, slots=0, kernel_args=("disable_radix",), qemu_args=PHB)

_RELAY: Final = str(Path(relay.__file__))
# The first that has migration from a file.
_OLDEST: Final = (8, 2, 0)
_SESSION: Final = "session.json"
# The guest's time goes by its instructions: by the host's, its timers would come so often that it gets to nothing else.
_THREADS: Final = "tcg,thread=multi"
_CLOCK: Final = ("-icount", "shift=3,sleep=on")
_KERNEL_FILE: Final = "/run/vmlinux"
# What the host's disks are, in their order.
_QEMU, _KERNEL, _INITRAMFS, _RAM, _DEVICES = range(5)


class NestedMachine(PseriesMachine):
    """A machine in the host. What its own QEMU would be given by descriptor (migration, dumps) it cannot have."""

    @classmethod
    def clone(cls, harness: Harness, image: GuestImage, timeline: Timeline, ram: Path) -> Self:
        """Start one in the host; its guest was booted outside. About 20 s.

        :param harness: with a build that runs in the host. :param ram: the template's memory, as it is named here.
        :raises LaunchFailed: QEMU did not start. :raises MachineError: it could not make sense of the template.
        """
        with cls(harness, SPEC, image, timeline)._started(Ram(ram, private=True)) as machine:
            restore_from(machine.qmp, timeline, disk_path(_DEVICES), Deadline(machine.budgets.launch))
            machine.wake()
        return machine

    def go_back(self, host: VfioHost) -> None:
        """Take the host and this machine back to when ``host.save()`` was called, and forget what has happened since."""
        self._forget_connection()
        host.go_back()
        self._ledger.attempts.clear()
        self.guest.taken_back()
        self.timeline.step("back to when the host was saved")


@dataclass(frozen=True)
class Nest:
    """A host and all that machines in it need. :ivar harness: with the build in the host."""

    host: VfioHost
    harness: Harness
    image: GuestImage
    ram: Path

    def start(self, timeline: Timeline) -> NestedMachine:
        """Start a machine in the host, which has none. What the host's kernel says goes to its timeline, too.

        :raises: as :meth:`NestedMachine.clone`.
        """
        self.host.accommodate(timeline)
        machine = NestedMachine.clone(self.harness, self.image, timeline, self.ram)
        machine.at_end.append(lambda: self.host.accommodate(None))
        return machine


@contextmanager
def nest(
    cache: Cache,
    emulator: Emulator,
    host_image: GuestImage,
    harness: Harness,
    image: GuestImage,
    timeline: Timeline,
    progress: Progress,
) -> Iterator[Nest]:
    """Boot a host for the ``with`` block, in which machines like those of ``harness`` can be started.

    :param harness: of machines outside: it makes the template. :param timeline: the host's.
    :raises BuildError: the build is none of the cache's, or not for x86-64. :raises NoTemplate: this machine can have none.
    :raises BootFailed: the host does not come up.
    """
    stored = store.find(cache, harness.build.name)
    if stored is None or stored.binary != harness.build.binary:
        raise BuildError(
            f"only a QEMU build by its name can run in the nested host, not {harness.build.binary}: see `spapr qemu list`."
        )
    if harness.build.version < _OLDEST:
        raise BuildError(f"{harness.build.version_text} cannot take a machine's state from a file: QEMU 8.2 and later can.")
    if image.disk is not None:
        raise NoTemplate(f"the image {image.name} has a disk, which the nested host does not hand on")
    archive = payload.obtain(cache, stored)
    with ExitStack() as resources:
        template = obtain(cache, harness, SPEC, image, progress, timeline)
        resources.callback(template.close)
        ram = template.snapshot.ram
        disks = (
            Disk("qemu", archive),
            Disk("kernel", image.kernel),
            Disk("initramfs", image.initramfs),
            Disk("ram", ram),
            Disk("devices", ram.parent / DEVICES),
        )
        progress.phase("booting the host of nested machines")
        snapshot = cache.directory("tmp", payload.KIND) / f"{token_hex(8)}.qcow2"
        host = VfioHost.start(emulator, host_image, disks, snapshot, harness.loop, timeline)
        resources.callback(host.close)
        # QEMU maps an ELF file, and a disk is none to it.
        host.run(f"cat {disk_path(_KERNEL)} > {_KERNEL_FILE}").check()
        files = {
            str(stored.prefix): payload.ROOT,
            str(image.kernel): _KERNEL_FILE,
            str(image.initramfs): disk_path(_INITRAMFS),
            str(ram): disk_path(_RAM),
            _THREADS: "tcg,thread=single",
        }
        session = _session(host, (*stored.command, *_CLOCK), stored.env, files)
        build = replace(harness.build, command=(sys.executable, "-I", "-S", _RELAY, str(session)), env={})
        yield Nest(host, Harness(build=build, loop=harness.loop, budgets=BUDGETS), image, ram)


def _session(host: VfioHost, command: tuple[str, ...], env: Mapping[str, str], files: Mapping[str, str]) -> Path:
    """Write what the relay has to know."""
    path = host.ports / _SESSION
    words, _ = relay.translated(command, files)
    values, _ = relay.translated(tuple(env.values()), files)
    told = {"command": words, "env": dict(zip(env, values, strict=True)), "files": dict(files), "ports": str(host.ports)}
    path.write_text(json.dumps(told))
    return path
