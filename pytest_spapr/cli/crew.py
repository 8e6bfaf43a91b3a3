"""Plays scenarios on several QEMU builds at once: a process for each CPU, and machines on the slots that all runs of a host share."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING

from pytest_spapr.battery.observation import Result
from pytest_spapr.cells import Cell, make_cells
from pytest_spapr.cli.workers import serve, spread
from pytest_spapr.config import Settings
from pytest_spapr.progress import NullProgress, Progress

if TYPE_CHECKING:
    from pytest_spapr.battery.scenarios import Scenario
    from pytest_spapr.hotplug.contract import Contract
    from pytest_spapr.hotplug.pseries import PseriesMachine
    from pytest_spapr.machine import Harness
    from pytest_spapr.qemu.qmp import QmpLoop
    from pytest_spapr.slots import Slots
    from pytest_spapr.starts import Starter


@dataclass(frozen=True, slots=True)
class Task:
    """A scenario to be played on a cell. :ivar cell: its number. :ivar scenario: its name."""

    cell: int
    scenario: str

    def __str__(self) -> str:
        return self.scenario


def play(settings: Sequence[Settings], tasks: Iterable[Task], progress: Progress, phase: str) -> Iterator[tuple[Task, Result]]:
    """Play the tasks, and yield each result as it comes. What the cells consist of must be at hand.

    An error or Ctrl-C ends all of it, machines included.

    :param settings: those of the cells. :param phase: what is done, for the progress.
    :raises MachineError: a process ended before its scenario did.
    """
    left = list(tasks)
    played: Iterator[tuple[Task, Result]] = spread(_work, settings, min(len(left), len(os.sched_getaffinity(0))), iter(left))
    progress.phase(phase)
    for done, (task, result) in enumerate(played, start=1):
        progress.update(done, len(left), task.scenario)
        yield task, result
    progress.done()


def _work(connection: Connection, settings: Sequence[Settings]) -> None:
    """Be a worker."""
    from pytest_spapr.qemu.qmp import QmpLoop
    from pytest_spapr.slots import Slots
    from pytest_spapr.starts import Starter

    cells = make_cells(settings)
    starter = Starter(cells[0].cache(), settings[0].template_space.value)
    with QmpLoop() as loop:
        players = [_Player(cell, loop, starter, Slots.of_host()) for cell in cells]

        def act(task: Task) -> Result:
            return players[task.cell].play(task.scenario)

        try:
            serve(connection, act)
        finally:
            starter.close()


class _Player:
    """Plays scenarios on one cell."""

    def __init__(self, cell: Cell, loop: QmpLoop, starter: Starter, slots: Slots) -> None:
        self._cell = cell
        self._loop = loop
        self._starter = starter
        self._slots = slots

    def play(self, name: str) -> Result:
        from pytest_spapr.battery.run import perform
        from pytest_spapr.battery.scenarios import named

        scenario = named(name)
        found = (self._cell.build(), self._cell.accelerator(), self._cell.kernel_release())
        if (defect := scenario.prevented_by(*found)) is not None:
            return Result(scenario=name, trouble=f"it is not played: {defect.summary}", defect=defect.id)
        return perform(scenario, lambda: self._machine(scenario), self._contract)

    @contextmanager
    def _machine(self, scenario: Scenario) -> Iterator[PseriesMachine]:
        from pytest_spapr.qemu.argv import MachineSpec
        from pytest_spapr.timeline import Timeline

        settings, image, timeline = self._cell.settings, self._cell.image(), Timeline()
        spec = MachineSpec(accelerator=self._cell.accelerator(), firmware=settings.firmware.value, **scenario.shape)
        with self._slots.take(self._slots.weight(spec.vcpus, spec.memory)):
            if scenario.boots and settings.start.value == "clone":
                started = self._starter.start(self._harness, spec, image, timeline, NullProgress())
            else:
                started = self._starter.boot(self._harness, spec, image, timeline, boot=scenario.boots)
            try:
                yield started.machine
            finally:
                started.machine.close()

    @cached_property
    def _contract(self) -> Contract:
        from pytest_spapr.supply import supply_contract

        return supply_contract(self._cell.settings, self._cell.build(), self._cell.image())

    @cached_property
    def _harness(self) -> Harness:
        from pytest_spapr.deadline import budgets
        from pytest_spapr.machine import Harness

        return Harness(build=self._cell.build(), loop=self._loop, budgets=budgets(self._cell.accelerator()))
