"""A QEMU build under measurement, and the machines that are made of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Self

from ci.benchmark.figures import Figures
from pytest_spapr.cache import Cache
from pytest_spapr.config import Settings
from pytest_spapr.deadline import Deadline, budgets
from pytest_spapr.errors import SpaprError
from pytest_spapr.hotplug.attempt import Attempt
from pytest_spapr.hotplug.contract import Contract
from pytest_spapr.hotplug.expectation import Expectation
from pytest_spapr.hotplug.pseries import PseriesMachine
from pytest_spapr.images.store import GuestImage
from pytest_spapr.machine import Harness
from pytest_spapr.progress import Progress
from pytest_spapr.qemu.argv import MachineSpec
from pytest_spapr.qemu.build import QemuBuild
from pytest_spapr.qemu.qmp import QmpLoop
from pytest_spapr.qemu.snapshot import restore
from pytest_spapr.report.failure import explain
from pytest_spapr.slots import Lease, Slots
from pytest_spapr.starts import Starter
from pytest_spapr.supply import supply_accelerator, supply_build, supply_image
from pytest_spapr.timeline import Timeline

Start = Callable[[Timeline], PseriesMachine]


class WrongOutcome(AssertionError):
    """What was measured was not what it should have been: its figure is worth nothing."""


class NotMeasured(SpaprError):
    """Something cannot be measured that should be."""


@dataclass(frozen=True, slots=True)
class Running:
    """A machine that was started on slots. :ivar began: when its start did. :ivar seconds: what that took, its guest included."""

    machine: PseriesMachine
    began: float
    seconds: float


@dataclass(kw_only=True)
class Subject:
    """One QEMU build with one guest image, and what its machines share.

    :ivar name: what the table calls it. :ivar spec: the machine that is measured: a test's default.
    :ivar started: the machines of the measurement that runs. :ivar defects: known defects that were met, by id, with how often.
    """

    name: str
    settings: Settings
    harness: Harness
    accelerator: str
    image: GuestImage
    starter: Starter
    slots: Slots
    directory: Path
    progress: Progress
    spec: MachineSpec
    figures: Figures = field(default_factory=Figures)
    started: list[PseriesMachine] = field(default_factory=list)
    defects: dict[str, int] = field(default_factory=dict)

    @classmethod
    def obtain(cls, settings: Settings, loop: QmpLoop, directory: Path, progress: Progress) -> Self:
        """Get the build and the image that these settings name.

        :param directory: for files of the measurement, gone after it. :raises SpaprError: they cannot be had.
        """
        cache = Cache(settings.cache_dir.value)
        build = supply_build(settings, cache, progress)
        accelerator = supply_accelerator(settings, build)
        return cls(
            name=column(build),
            settings=settings,
            harness=Harness(build=build, loop=loop, budgets=budgets(accelerator)),
            accelerator=accelerator,
            image=supply_image(settings, cache, progress),
            starter=Starter(cache, settings.template_space.value),
            slots=Slots.of_host(),
            directory=directory,
            progress=progress,
            spec=MachineSpec(accelerator=accelerator, firmware=settings.firmware.value),
        )

    @property
    def build(self) -> QemuBuild:
        return self.harness.build

    @property
    def contract(self) -> Contract:
        return Contract(self.build.features, self.image.kernel_release, qemu=self.build.version)

    def facts(self) -> dict[str, Any]:
        """Return what is measured, for JSON; nothing of it says where it is on this host."""
        return {
            "name": self.name,
            "qemu": self.build.version_text,
            "qemu_sha256": self.build.sha256,
            "accelerator": self.accelerator,
            "image": Path(self.image.name).name,
            "kernel": self.image.kernel_release,
            "guest_mib": self.spec.memory,
        }

    def slot(self) -> Lease:
        """Return what a machine runs on, when it is free."""
        return self.slots.take(self.slots.weight(self.spec.vcpus, self.spec.memory), progress=self.progress)

    @contextmanager
    def running(self, start: Start) -> Iterator[Running]:
        """Start a machine, for the ``with`` block, when there are slots for it; the wait for them does not count."""
        with self.slot():
            began = time.monotonic()
            machine = start(Timeline())
            seconds = time.monotonic() - began
            self.started.append(machine)
            try:
                yield Running(machine, began, seconds)
            finally:
                machine.close()

    def clone(self, timeline: Timeline) -> PseriesMachine:
        """Start a clone, as a test gets it, of a template that is there already. :raises NotMeasured: there can be none."""
        machine = self.starter.clone(self.harness, self.spec, self.image, timeline)
        if machine is None:
            raise NotMeasured(f"{self.name}: machines of this build cannot be cloned, or their template was removed meanwhile")
        return machine

    def boot(self, firmware: Literal["vof", "slof"]) -> Start:
        """Return what boots a machine with this firmware."""
        spec = replace(self.spec, firmware=firmware)
        return lambda timeline: PseriesMachine.start(self.harness, spec, self.image, timeline)

    def make_template(self) -> None:
        """Have a clone made once, and so its template if there is none. :raises NotMeasured: machines cannot be cloned."""
        with self.slot():
            started = self.starter.start(self.harness, self.spec, self.image, Timeline(), self.progress)
            started.machine.close()
        if started.how != "clone":
            raise NotMeasured(f"{self.name}: no clones: {started.why}")

    def migration_file(self) -> Path:
        """Return the file with a machine's whole state, memory included, written at the first call."""
        path = self.directory / f"{self.build.sha256}-{self.accelerator}.migration"
        if not path.exists():
            with self.running(lambda timeline: PseriesMachine.start(self.harness, self.spec, self.image, timeline)) as source:
                source.machine.guest.rest()
                stream = source.machine.save()
            path.write_bytes(stream)
            self.figures.notes["migration_file_mb"] = round(len(stream) / 1e6, 1)
        return path

    def restored(self, timeline: Timeline) -> PseriesMachine:
        """Start a machine from :meth:`migration_file`, the classic way: nothing of its memory is shared."""
        spec = replace(self.spec, qemu_args=("-incoming", "defer"))
        machine = _Incoming.start(self.harness, spec, self.image, timeline, boot=False)
        try:
            machine.receive(self.migration_file().read_bytes())
        except BaseException:
            machine.close()
            raise
        return machine


class _Incoming(PseriesMachine):
    """A machine that waits for another one's state, with memory of its own."""

    def receive(self, stream: bytes) -> None:
        """Take the state and run; then the guest is renewed, as a clone's is."""
        assert self.image is not None
        restore(self.qmp, self.timeline, stream, Deadline(self.budgets.boot))
        self.cont()
        self._guest = self._meet_guest(self.image)
        self._guest.renew()


def require(attempt: Attempt, promised: Expectation) -> None:
    """Check an attempt: outcome, events, and all three views. :raises WrongOutcome: not what the contract promises."""
    if attempt != promised:
        raise WrongOutcome("\n".join(explain(attempt, promised)))


def column(build: QemuBuild) -> str:
    """Return what the table calls a build; a path says nothing to whoever reads the table elsewhere."""
    return ".".join(map(str, build.version)) if "/" in build.name else build.name
