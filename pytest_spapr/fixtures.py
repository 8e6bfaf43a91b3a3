"""The fixtures."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import replace
from enum import Enum
from typing import TYPE_CHECKING, Any, Final, NoReturn, Protocol

import pytest

from pytest_spapr import markers
from pytest_spapr.ahead import Ahead
from pytest_spapr.case import case_of
from pytest_spapr.cells import Cell
from pytest_spapr.coverage.connectors import watch
from pytest_spapr.deadline import budgets
from pytest_spapr.errors import SpaprError
from pytest_spapr.live import monitor_command
from pytest_spapr.report.artefacts import Launch
from pytest_spapr.rig import RIG, Rig, progress_at_need
from pytest_spapr.supply import Unavailable, supply_contract
from pytest_spapr.timeline import Lane, Timeline

if TYPE_CHECKING:
    from pytest_spapr.guest.guest import Guest
    from pytest_spapr.hotplug.contract import Contract
    from pytest_spapr.hotplug.pseries import PseriesMachine
    from pytest_spapr.images.store import GuestImage
    from pytest_spapr.machine import Harness
    from pytest_spapr.progress import Progress
    from pytest_spapr.qemu.argv import MachineSpec
    from pytest_spapr.qemu.build import QemuBuild
    from pytest_spapr.qemu.qmp import Qmp


class DefaultImage(Enum):
    """Stands for the session's guest image."""

    SESSION = "the session's guest image"


SESSION_IMAGE: Final = DefaultImage.SESSION


class LaunchMachine(Protocol):
    """The type of the fixture ``launch_machine``."""

    def __call__(
        self, *, image: GuestImage | DefaultImage | None = SESSION_IMAGE, boot: bool = True, **shape: Any
    ) -> PseriesMachine:
        """Start one more machine for this test; it ends with the test.

        Costs 0.1 s for a clone, whose template costs a boot and 3 s once; a boot costs 2 s (VOF) to 7 s (SLOF) under TCG; without an
        image it is 0.1 s.

        :param image: another guest image, or None for a machine that has none and stays in its firmware.
        :param boot: False leaves the machine paused before its first instruction; ``machine.boot()`` goes on.
        :param shape: as in ``@pytest.mark.spapr(...)``, and above what the marks say; ``start="boot"`` for no clone.
        :raises ConfigError: an unknown or impossible shape. :raises LaunchFailed: QEMU did not start.
        :raises BootFailed: the guest did not come up.
        """
        ...


@pytest.fixture(scope="session")
def spapr_cell(request: pytest.FixtureRequest) -> Cell:
    """The QEMU build and the guest image of the test. Where several of either are named, each test is run for each pair."""
    cell: Cell | None = getattr(request, "param", None)
    cells = request.config.stash[RIG].cells
    if cell is None and len(cells) > 1:
        # By request.getfixturevalue, or in a unittest.TestCase.
        pytest.fail(
            f"this run is for {len(cells)} pairs of QEMU build and guest image, and pytest cannot see that this test is for them: "
            "name a fixture of pytest-spapr (machine, launch_machine) among the arguments of the test function.",
            pytrace=False,
        )
    return cell or cells[0]


@pytest.fixture(scope="session")
def qemu_build(spapr_cell: Cell) -> QemuBuild:
    """The QEMU build under test, probed."""
    try:
        return spapr_cell.build()
    except SpaprError as error:
        give_up(spapr_cell, error)


@pytest.fixture(scope="session")
def guest_image(spapr_cell: Cell) -> GuestImage:
    """The guest image that machines boot."""
    try:
        return spapr_cell.image()
    except SpaprError as error:
        give_up(spapr_cell, error)


@pytest.fixture(scope="session")
def spapr_accelerator(spapr_cell: Cell) -> str:
    """``tcg`` or ``kvm``."""
    try:
        return spapr_cell.accelerator()
    except SpaprError as error:
        give_up(spapr_cell, error)


@pytest.fixture(scope="session")
def spapr_harness(
    request: pytest.FixtureRequest, spapr_cell: Cell, qemu_build: QemuBuild, spapr_accelerator: str
) -> Iterator[Harness]:
    """What all machines of the session share; those of one cell, where there are several."""
    rig = request.config.stash[RIG]
    settings = rig.settings
    keep, backdoors = settings.keep.value != "never", settings.backdoor.value
    with harness(qemu_build, spapr_accelerator, keep=keep, backdoors=backdoors) as shared:
        ahead = spapr_cell.ahead = Ahead(rig.starter(), shared, rig.slots())
        try:
            yield shared
        finally:
            spapr_cell.ahead = None
            ahead.drop()
            rig.starter().close()


@pytest.fixture
def launch_machine(request: pytest.FixtureRequest, spapr_harness: Harness, spapr_accelerator: str) -> Iterator[LaunchMachine]:
    """A factory of machines for this test: ``launch_machine(cpus=2)``, ``launch_machine(image=None)``."""
    item: pytest.Item = request.node
    case = case_of(item)
    rig = item.config.stash[RIG]

    def launch(*, image: GuestImage | DefaultImage | None = SESSION_IMAGE, boot: bool = True, **shape: Any) -> PseriesMachine:
        chosen: GuestImage | None = request.getfixturevalue("guest_image") if isinstance(image, DefaultImage) else image
        wanted = markers.checked(shape, "launch_machine()")
        how, spec = _wanted(item, rig, spapr_accelerator, wanted, guest=chosen is not None)
        record = Launch(spec, spapr_harness.build, chosen, Timeline())
        case.launches.append(record)
        rig.show(record.timeline, len(case.launches))
        began = time.monotonic()
        with progress_at_need(item.config) as progress, ExitStack() as on_failure:
            slots = rig.slots()
            record.lease = on_failure.enter_context(slots.take(slots.weight(spec.vcpus, spec.memory), progress=progress))
            machine = record.machine = _start(item, spapr_harness, record, how if boot else "boot", progress, boot=boot)
            machine.at_end.append(record.lease.release)
            if machine.backdoor is not None:
                _tell_backdoor(rig, item, machine)
            if rig.settings.coverage.value:
                watch(machine)
                record.watched = True
            on_failure.pop_all()
        record.seconds = time.monotonic() - began
        record.began, record.booted = record.timeline.mark(), machine.has_guest
        hook = item.ihook
        machine.observers.append(lambda attempt: hook.pytest_spapr_unplug_finished(machine=machine, attempt=attempt))
        hook.pytest_spapr_machine_started(machine=machine)
        return machine

    yield launch
    case.finish()


@pytest.fixture
def machine(launch_machine: LaunchMachine) -> PseriesMachine:
    """A fresh machine with a booted guest, shaped by ``@pytest.mark.spapr(...)``. Costs what ``launch_machine`` says."""
    return launch_machine()


@pytest.fixture
def guest(machine: PseriesMachine) -> Guest:
    """The guest of ``machine``."""
    return machine.guest


@pytest.fixture
def qmp(machine: PseriesMachine) -> Qmp:
    """The monitor of ``machine``."""
    return machine.qmp


@pytest.fixture(scope="session")
def contract(spapr_cell: Cell, qemu_build: QemuBuild, guest_image: GuestImage) -> Contract:
    """What this QEMU build promises together with the guest image's kernel."""
    return supply_contract(spapr_cell.settings, qemu_build, guest_image)


@contextmanager
def harness(build: QemuBuild, accelerator: str, *, keep: bool, backdoors: bool) -> Iterator[Harness]:
    """Make what all machines of the session share; a seam for tests without QEMU."""
    from pytest_spapr.machine import Harness
    from pytest_spapr.qemu.qmp import QmpLoop

    with QmpLoop() as loop:
        yield Harness(build=build, loop=loop, budgets=budgets(accelerator), keep=keep, backdoors=backdoors)


def prepare_next(config: pytest.Config) -> None:
    """Have the next test's machine started in the background, if that test wants a clone and its template exists."""
    rig = config.stash[RIG]
    item = rig.next_item
    if item is None or not _gets_our_machine(item):
        return
    cell = rig.cell(item)
    # Another cell's harness is made when its first test begins.
    if cell is None or cell.ahead is None:
        return
    try:
        how, spec = _wanted(item, rig, cell.accelerator(), {}, guest=True)
        if how == "clone":
            cell.ahead.prepare(spec, cell.image())
    except Exception:  # noqa: BLE001 - a bad mark or hook of another test is that test's to tell
        return


def _gets_our_machine(item: pytest.Item) -> bool:
    """Whether the test gets the fixture ``machine`` of this module, not one of its own that has nothing to do with it."""
    if "machine" not in getattr(item, "fixturenames", ()):
        return False
    # pytest has no public name for which fixture a test's argument stands for. Without this one nothing is prepared.
    known = getattr(getattr(item, "_fixtureinfo", None), "name2fixturedefs", {})
    for definition in reversed(known.get("machine", ())):
        if definition.func.__module__ == __name__:
            return True
        if "machine" not in definition.argnames:
            return False
    return False


def _wanted(item: pytest.Item, rig: Rig, accelerator: str, shape: dict[str, Any], *, guest: bool) -> tuple[str, MachineSpec]:
    """Return how a test's machine is to be started, and what it is."""
    settings = rig.settings
    default: dict[str, Any] = {"machine": settings.machine.value, "cpu": settings.cpu.value}
    if guest:
        # VOF without a kernel stops the machine.
        default["firmware"] = settings.firmware.value
    default = {name: value for name, value in default.items() if value is not None}
    how, values = markers.start(default | markers.shape(item) | shape, settings.start.value)
    if guest and settings.kernel_args.value:
        values["kernel_args"] = (*settings.kernel_args.value.split(), *values.get("kernel_args", ()))
    return how, _with_hook_arguments(item, replace(markers.spec(values), accelerator=accelerator))


def _start(item: pytest.Item, shared: Harness, record: Launch, how: str, progress: Progress, *, boot: bool) -> PseriesMachine:
    """Start the machine of ``record``, note how it was done, and return it."""
    rig = item.config.stash[RIG]
    name = f"machine for {item.nodeid}"
    if how == "clone" and record.image is not None:
        cell = rig.cell(item)
        if cell and cell.ahead and (machine := cell.ahead.take(record.spec, record.image)):
            record.how = "ahead"
            record.timeline = machine.timeline
            rig.show(record.timeline, len(case_of(item).launches))
            record.timeline.record(Lane.STEP, name, record.about)
            return machine
        record.timeline.record(Lane.STEP, name, record.about)
        started = rig.starter().start(shared, record.spec, record.image, record.timeline, progress)
    else:
        record.timeline.record(Lane.STEP, name, record.about)
        watched = boot and record.image is not None
        with rig.boot_progress(item.config, record.timeline) if watched else nullcontext():
            started = rig.starter().boot(shared, record.spec, record.image, record.timeline, boot=boot)
    record.how, record.why = started.how, started.why
    return started.machine


def _tell_backdoor(rig: Rig, item: pytest.Item, machine: PseriesMachine) -> None:
    """Say where the machine's second monitor is, now and whenever it has moved."""

    def tell() -> None:
        rig.say(f"spapr: {item.nodeid}: {monitor_command(machine)}")

    tell()
    machine.at_move.append(tell)


def _with_hook_arguments(item: pytest.Item, spec: MachineSpec) -> MachineSpec:
    answers: list[list[str]] = item.ihook.pytest_spapr_machine_args(spec=spec)
    return replace(spec, qemu_args=(*spec.qemu_args, *(word for answer in answers for word in answer)))


def give_up(cell: Cell, error: SpaprError) -> NoReturn:
    """Skip for want of a default, unless the user is strict; fail for anything else."""
    if isinstance(error, Unavailable) and not cell.settings.strict.value:
        pytest.skip(str(error))
    pytest.fail(str(error), pytrace=False)
