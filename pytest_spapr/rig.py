"""What one pytest process has at hand for its machines: settings, QEMU build, accelerator, guest image, and the run's summary."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Generic, TypeVar

import pytest

from pytest_spapr.config import Settings
from pytest_spapr.errors import SpaprError
from pytest_spapr.report.summary import Summary
from pytest_spapr.starts import Starter
from pytest_spapr.supply import Unavailable, check_recipe, supply_accelerator, supply_build, supply_image
from pytest_spapr.timeline import Lane, Record, Timeline

if TYPE_CHECKING:
    from pytest_spapr.ahead import Ahead
    from pytest_spapr.cache import Cache
    from pytest_spapr.images.store import GuestImage
    from pytest_spapr.progress import Progress
    from pytest_spapr.qemu.build import QemuBuild
    from pytest_spapr.slots import Slots

T = TypeVar("T")

# started, modules loaded, sshd listening, ready
_BOOT_PHASES = 4

_NEEDS_BUILD = frozenset({"qemu_build", "spapr_harness", "launch_machine", "machine", "guest", "qmp", "contract"})
_NEEDS_IMAGE = frozenset({"guest_image", "launch_machine", "machine", "guest", "qmp", "contract"})


class Rig:
    """One per pytest process, in ``config.stash[RIG]``. Each thing is found or made once; an error stays the same error.

    :param run_directory: where this run's artefacts go; made when there is the first.
    :ivar next_item: the test after the one that runs, where pytest knows it. :ivar ahead: prepares its machine, while a harness lives.
    """

    def __init__(self, settings: Settings, run_directory: Path) -> None:
        self.settings = settings
        self.run_directory = run_directory
        self.summary = Summary()
        self.next_item: pytest.Item | None = None
        self.ahead: Ahead | None = None
        self._booted = False
        self._starter: Starter | None = None
        self._slots: Slots | None = None
        self._build: _Once[QemuBuild] = _Once()
        self._accelerator: _Once[str] = _Once()
        self._image: _Once[GuestImage] = _Once()

    def cache(self) -> Cache:
        from pytest_spapr.cache import Cache

        return Cache(self.settings.cache_dir.value)

    @property
    def has_build(self) -> bool:
        return self._build.value is not None

    def build(self, progress: Progress | None = None) -> QemuBuild:
        """Return the QEMU build under test. :raises SpaprError: see ``supply_build``."""
        return self._build.get(lambda: supply_build(self.settings, self.cache(), progress or _silent()))

    def accelerator(self) -> str:
        """Return ``tcg`` or ``kvm``. :raises SpaprError: see ``supply_accelerator``."""
        return self._accelerator.get(lambda: supply_accelerator(self.settings, self.build()))

    def image(self, progress: Progress | None = None) -> GuestImage:
        """Return the guest image. :raises SpaprError: see ``supply_image``."""
        return self._image.get(lambda: supply_image(self.settings, self.cache(), progress or _silent()))

    def starter(self) -> Starter:
        """Return what starts this process's machines."""
        if self._starter is None:
            self._starter = Starter(self.cache(), self.settings.template_space.value)
        return self._starter

    def prepare(self, items: Iterable[pytest.Item], progress: Progress) -> bool:
        """Get what these tests need, before the first of them runs; return whether any needs a machine.

        :raises pytest.UsageError: what the user asked for cannot be had. What a default lacks shows when a fixture needs it.
        """
        names = {name for item in items for name in getattr(item, "fixturenames", ())}
        if names.isdisjoint(_NEEDS_BUILD | _NEEDS_IMAGE):
            return False
        self.obtain(progress, image=not names.isdisjoint(_NEEDS_IMAGE))
        return True

    def obtain(self, progress: Progress, *, image: bool = True) -> None:
        """Get the QEMU build, the accelerator and, if named, the guest image. :raises pytest.UsageError: as :meth:`prepare`."""
        try:
            if image:
                check_recipe(self.settings)
            self.build(progress)
            self.accelerator()
            if image and self.settings.asked:
                self.image(progress)
        except Unavailable:
            pass
        except SpaprError as error:
            if self.settings.asked or self.settings.accel.named:
                raise pytest.UsageError(str(error)) from error

    def facts(self) -> str:
        """Return, in one line, what is tested; only what has been found by now."""
        found = []
        if build := self._build.value:
            found.append(f"{build.version_text}, {build.binary}")
        if accelerator := self._accelerator.value:
            found.append(accelerator)
        if image := self._image.value:
            found.append(f"image {image.name}, Linux {image.kernel_release}")
        return ", ".join(found)

    def slots(self) -> Slots:
        """Return what bounds the machines that run at the same time. :raises ConfigError: see ``Slots.of_host``."""
        if self._slots is None:
            from pytest_spapr.slots import Slots

            self._slots = Slots.of_host()
        return self._slots

    def boot_progress(self, config: pytest.Config, timeline: Timeline) -> AbstractContextManager[object]:
        """Show how the guest comes up inside the ``with`` block, for the first boot of the run: it tells what the others cost."""
        if self._booted or config.pluginmanager.get_plugin("terminalreporter") is None:
            return nullcontext()
        self._booted = True
        return _boot_progress(config, timeline)


RIG = pytest.StashKey[Rig]()


@contextmanager
def progress_past_capture(config: pytest.Config) -> Iterator[Progress]:
    """Progress on the real standard error, past pytest's capturing."""
    from pytest_spapr.progress import finished, progress_for

    capture = config.pluginmanager.get_plugin("capturemanager")
    with (
        nullcontext() if capture is None else capture.global_and_fixture_disabled(),
        finished(progress_for(sys.stderr)) as progress,
    ):
        yield progress


@contextmanager
def progress_at_need(config: pytest.Config) -> Iterator[Progress]:
    """Progress in the middle of a test's set-up, past pytest's capturing, which ends only if there is something to show."""
    if config.pluginmanager.get_plugin("terminalreporter") is None:
        yield _silent()
        return

    def enter() -> Progress:
        progress = shown.enter_context(progress_past_capture(config))
        # pytest stands behind the name of the test's file.
        sys.stderr.write("\n")
        return progress

    with ExitStack() as shown:
        yield _AtNeed(enter)


class _AtNeed:
    """Progress that is made when it is first used."""

    def __init__(self, make: Callable[[], Progress]) -> None:
        self._make = make
        self._progress: Progress | None = None

    def phase(self, text: str) -> None:
        self._get().phase(text)

    def update(self, done: int, total: int, text: str) -> None:
        self._get().update(done, total, text)

    def done(self) -> None:
        self._get().done()

    def _get(self) -> Progress:
        if self._progress is None:
            self._progress = self._make()
        return self._progress


@contextmanager
def _boot_progress(config: pytest.Config, timeline: Timeline) -> Iterator[None]:
    phases = itertools.count(1)
    booting = True
    with progress_past_capture(config) as progress:
        # pytest stands behind the name of the test's file.
        sys.stderr.write("\n")
        progress.phase("first boot")

        def show(record: Record) -> None:
            if booting and record.lane is Lane.SERVICE and record.text.startswith("init: "):
                progress.update(next(phases), _BOOT_PHASES, f"phases, {record.text}, {record.time:.1f} s")

        timeline.listen(show)
        try:
            yield
        finally:
            booting = False


class _Once(Generic[T]):
    """The result of the first call, or its error, for all later calls."""

    def __init__(self) -> None:
        self.value: T | None = None
        self._error: SpaprError | None = None

    def get(self, make: Callable[[], T]) -> T:
        if self._error is not None:
            raise self._error
        if self.value is None:
            try:
                self.value = make()
            except SpaprError as error:
                self._error = error
                raise
        return self.value


def _silent() -> Progress:
    from pytest_spapr.progress import NullProgress

    return NullProgress()
