"""What one pytest process has at hand for its machines: settings, the cells of its matrix, and the run's summary."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pytest_spapr.cells import Cell, make_cells
from pytest_spapr.config import Settings
from pytest_spapr.errors import SpaprError
from pytest_spapr.live import Tee
from pytest_spapr.report.summary import Summary
from pytest_spapr.starts import Starter
from pytest_spapr.supply import Unavailable
from pytest_spapr.timeline import Lane, Record, Timeline

if TYPE_CHECKING:
    from pytest_spapr.progress import Progress
    from pytest_spapr.slots import Slots

#: The fixture that stands for the test's cell: all others come from it.
CELL = "spapr_cell"

# started, modules loaded, sshd listening, ready
_BOOT_PHASES = 4

_NEEDS_IMAGE = frozenset({"guest_image", "launch_machine", "machine", "guest", "qmp", "contract"})


class Rig:
    """One per pytest process, in ``config.stash[RIG]``.

    :param settings: of each cell. :param run_directory: where this run's artefacts go; made when there is the first.
    :ivar settings: of the first cell, for what all have in common. :ivar cells: every QEMU build with every guest image.
    :ivar item: the test that runs. :ivar next_item: the test after the one that runs, where pytest knows it.
    """

    def __init__(self, settings: Sequence[Settings], run_directory: Path) -> None:
        self.settings = settings[0]
        self.cells = make_cells(settings)
        self.run_directory = run_directory
        self.summary = Summary()
        self.item: pytest.Item | None = None
        self.next_item: pytest.Item | None = None
        self._booted = False
        self._starter: Starter | None = None
        self._slots: Slots | None = None
        self._tee = Tee() if self.settings.console.value or self.settings.backdoor.value else None

    def say(self, text: str) -> None:
        """Write a line for whoever asked for live help."""
        if self._tee is not None:
            self._tee.say(text)

    def show(self, timeline: Timeline, number: int) -> None:
        """Show what a guest says, where that was asked for. :param number: of the test's machine, from 1."""
        if self._tee is not None and self.settings.console.value:
            self._tee.follow(timeline, "" if number == 1 else f"machine {number}: ")

    def close(self) -> None:
        """Give back what the process has of the terminal."""
        if self._tee is not None:
            self._tee.close()

    def cell(self, item: pytest.Item) -> Cell | None:
        """Return the test's cell: that which it is run for, or the only one there is."""
        found = item.callspec.params.get(CELL) if hasattr(item, "callspec") else None
        if isinstance(found, Cell):
            return found
        return self.cells[0] if len(self.cells) == 1 else None

    def starter(self) -> Starter:
        """Return what starts this process's machines."""
        if self._starter is None:
            self._starter = Starter(self.cells[0].cache(), self.settings.template_space.value)
        return self._starter

    def prepare(self, items: Iterable[pytest.Item], progress: Progress) -> bool:
        """Get what these tests need, before the first of them runs; return whether any needs a machine.

        :raises pytest.UsageError: what the user asked for cannot be had. What a default lacks shows when a fixture needs it.
        """
        needed: dict[Cell, bool] = {}
        for item in items:
            names = getattr(item, "fixturenames", ())
            if CELL in names and (cell := self.cell(item)):
                needed[cell] = needed.get(cell, False) or not _NEEDS_IMAGE.isdisjoint(names)
        for cell, image in needed.items():
            self._obtain(cell, progress, image=image)
        return bool(needed)

    def obtain(self, progress: Progress) -> None:
        """Get what all cells consist of. :raises pytest.UsageError: as :meth:`prepare`."""
        for cell in self.cells:
            self._obtain(cell, progress, image=True)

    def _obtain(self, cell: Cell, progress: Progress, *, image: bool) -> None:
        try:
            cell.obtain(progress, image=image)
        except Unavailable:
            pass
        except SpaprError as error:
            if self.settings.asked or self.settings.accel.named:
                raise pytest.UsageError(str(error)) from error

    def facts(self) -> list[str]:
        """Return what is tested, a line for each cell; only what has been found by now."""
        return [line for cell in self.cells if (line := cell.facts())]

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


def _silent() -> Progress:
    from pytest_spapr.progress import NullProgress

    return NullProgress()
