"""The runner as a machine: pseries with nested KVM, made of a template that has everything installed."""

from __future__ import annotations

import base64
import io
import tarfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from shlex import join
from typing import Final

from pytest_spapr import tar
from pytest_spapr.cache import Cache
from pytest_spapr.deadline import Budgets
from pytest_spapr.errors import SpaprError
from pytest_spapr.images import build as images
from pytest_spapr.images import store
from pytest_spapr.images.store import GuestImage
from pytest_spapr.machine import Harness
from pytest_spapr.progress import Progress
from pytest_spapr.qemu.argv import MachineSpec
from pytest_spapr.qemu.build import QemuBuild
from pytest_spapr.qemu.qmp import QmpLoop
from pytest_spapr.report.artefacts import Launch, save
from pytest_spapr.slots import Slots
from pytest_spapr.starts import Started, Starter
from pytest_spapr.templates import store as templates
from pytest_spapr.timeline import Lane, Record, Timeline

#: The recipe of its image, and the QEMU build that emulates it: the pair that is fastest.
IMAGE: Final = "ppc64-runner"
BUILD: Final = "7.2"

#: What nested KVM needs, and what its guests cannot do without: TCG gives no mitigations, and a kernel that believes in them dies.
_MACHINE: Final = "pseries,cap-nested-hv=on,cap-cfpc=broken,cap-sbbc=broken,cap-ibs=broken,cap-ccf-assist=off"
SPEC: Final = MachineSpec(machine=_MACHINE, cpu="power9", cpus=2, max_cpus=2, memory=4096, max_memory=4096, slots=0)
#: The boot installs everything by pip, under TCG: five minutes on an idle host.
BUDGETS: Final = Budgets(launch=120, boot=1800, ssh=180, command=180, qmp=120, plug=180, unplug=180)
#: What run_suite ends with where the runner's kernel has no KVM.
NO_KVM: Final = 10

_MARK: Final = "pytest: "


class RunnerFailed(SpaprError):
    """The runner did not do its part."""


class Runner:
    """A running runner. :ivar started: how it came up."""

    def __init__(self, started: Started, launch: Launch) -> None:
        self.started = started
        self._machine = started.machine
        self._launch = launch

    def run(self, tests: Sequence[str], hear: Callable[[str], None], seconds: float) -> int:
        """Run tests of the installed suite under KVM, and return pytest's exit status.

        :param tests: as ``payload.installed_name`` returns them. :param hear: is given each line that pytest writes.
        :raises RunnerFailed: its kernel has no KVM. :raises SpaprError: it died, or the tests did not end in time.
        """

        def listen(record: Record) -> None:
            if record.lane is Lane.CONSOLE and record.text.startswith(_MARK):
                hear(record.text.removeprefix(_MARK))

        self._machine.timeline.listen(listen)
        done = self._machine.guest.run(join(["/usr/sbin/run_suite", *tests]), seconds=seconds)
        if done.status == NO_KVM:
            raise RunnerFailed(f"the runner's kernel has no KVM: {done.stderr.strip() or 'no /dev/kvm'}")
        return done.status

    def fetch(self, directory: Path) -> None:
        """Bring /results of the runner to a directory here.

        :raises SpaprError: it does not give them. :raises tarfile.TarError: what it gives are no results.
        """
        packed = self._machine.guest.run("tar -c -C /results . | gzip | base64", seconds=BUDGETS.boot).check().stdout
        with tarfile.open(fileobj=io.BytesIO(base64.b64decode(packed)), mode="r:gz") as archive:
            tar.unpack(archive, directory)

    def leave_record(self, directory: Path) -> None:
        """Write what was seen of the runner itself: its console, its kernel's log, its timeline."""
        save(directory, [self._launch])


@contextmanager
def runner(build: QemuBuild, image: GuestImage, cache: Cache, space: int, progress: Progress, records: Path) -> Iterator[Runner]:
    """Start the runner for the ``with`` block: a clone of its template, which is made if need be.

    :param image: the runner's, with its payload. :param space: bytes that templates may take. :param records: a directory for what was
        seen of a runner that does not come up.
    :raises SpaprError: it does not come up.
    """
    slots = Slots.of_host()
    timeline = Timeline()
    launch = Launch(SPEC, build, image, timeline)
    with slots.take(slots.weight(SPEC.vcpus, SPEC.memory), progress=progress), QmpLoop() as loop:
        starter = Starter(cache, space)
        try:
            progress.phase("starting the runner")
            try:
                started = starter.start(Harness(build=build, loop=loop, budgets=BUDGETS), SPEC, image, timeline, progress)
            except SpaprError:
                save(records, [launch])
                raise
            progress.done()
            forget_others(cache, image)
            launch.machine, launch.how, launch.why = started.machine, started.how, started.why
            try:
                yield Runner(started, launch)
            finally:
                started.machine.close()
        finally:
            starter.close()


def forget_others(cache: Cache, image: GuestImage) -> None:
    """Remove runners with an older payload, of which nobody has a machine: images of 220 MB and templates of 800 MB, and nobody asks for
    one again. What is in use, as by :func:`runner`, stays: templates, the images that they were made of, and images that are held.
    """
    booted = set()
    for listed in templates.listing(cache):
        if listed.manifest.get("image") == image.name and not templates.remove(cache, listed.entry.key):
            booted.add(listed.manifest.get("facts", {}).get("initramfs"))
    for entry in cache.entries(store.KIND):
        if entry.key.startswith(f"{image.name}-") and entry.path != image.directory and _initramfs(entry.path) not in booted:
            images.forget(cache, entry.key)


def _initramfs(directory: Path) -> str | None:
    """Return what an image's initramfs is known by, None of an image that cannot be used."""
    try:
        return str(store.open_image(directory).manifest["files"][store.INITRAMFS]["sha256"])
    except SpaprError:
        return None
