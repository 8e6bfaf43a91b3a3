"""Plays scenarios on several QEMU builds at once: a process for each CPU, and machines on the slots that all runs of a host share."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import TYPE_CHECKING

from pytest_spapr.battery.observation import Result
from pytest_spapr.cells import Cell, make_cells
from pytest_spapr.config import Settings
from pytest_spapr.errors import MachineError
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


def play(settings: Sequence[Settings], tasks: Iterable[Task], progress: Progress, phase: str) -> Iterator[tuple[Task, Result]]:
    """Play the tasks, and yield each result as it comes. What the cells consist of must be at hand.

    An error or Ctrl-C ends all of it, machines included.

    :param settings: those of the cells. :param phase: what is done, for the progress.
    :raises MachineError: a process ended before its scenario did.
    """
    left = deque(tasks)
    total, done = len(left), 0
    progress.phase(phase)
    with _workers(settings, min(total, len(os.sched_getaffinity(0)))) as workers:
        busy: dict[Connection, Task] = {}
        idle = list(workers)
        while left or busy:
            while left and idle:
                task = left.popleft()
                busy[connection := idle.pop()] = task
                connection.send(task)
            for connection in _ready(busy):
                task = busy.pop(connection)
                try:
                    result: Result = connection.recv()
                except EOFError:
                    status = _status(workers[connection])
                    raise MachineError(f"the process that played {task.scenario} ended with status {status}") from None
                idle.append(connection)
                done += 1
                progress.update(done, total, task.scenario)
                yield task, result
    progress.done()


@contextmanager
def _workers(settings: Sequence[Settings], count: int) -> Iterator[dict[Connection, SpawnProcess]]:
    # A fresh interpreter for each: this one has threads.
    context = multiprocessing.get_context("spawn")
    workers: dict[Connection, SpawnProcess] = {}
    try:
        for _ in range(count):
            ours, theirs = context.Pipe()
            process = context.Process(target=_work, args=(theirs, settings), daemon=True)
            process.start()
            theirs.close()
            workers[ours] = process
        yield workers
        for connection in workers:
            connection.send(None)
        for process in workers.values():
            process.join()
    finally:
        # QEMU dies with the process that started it.
        for process in workers.values():
            process.terminate()
        for connection, process in workers.items():
            process.join()
            connection.close()


def _ready(busy: Iterable[Connection]) -> list[Connection]:
    ready = wait(list(busy))
    return [connection for connection in busy if connection in ready]


def _status(process: SpawnProcess) -> int | None:
    process.join()
    return process.exitcode


def _work(connection: Connection, settings: Sequence[Settings]) -> None:
    """Be a worker: play what comes, until None comes or whoever sends is gone."""
    from pytest_spapr.qemu.qmp import QmpLoop
    from pytest_spapr.slots import Slots
    from pytest_spapr.starts import Starter

    # Ctrl-C goes to all processes of a terminal; the first one ends the others.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_die_with_parent, name="spapr-crew-parent", daemon=True).start()
    cells = make_cells(settings)
    starter = Starter(cells[0].cache(), settings[0].template_space.value)
    with QmpLoop() as loop:
        players = [_Player(cell, loop, starter, Slots.of_host()) for cell in cells]
        try:
            while (task := _received(connection)) is not None:
                connection.send(players[task.cell].play(task.scenario))
        except BrokenPipeError:
            return
        finally:
            starter.close()


def _die_with_parent() -> None:
    """Kill this process, and with it its machine, once the one that started it has died of whatever."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os.kill(os.getpid(), signal.SIGKILL)


def _received(connection: Connection) -> Task | None:
    try:
        task: Task | None = connection.recv()
    except EOFError:
        return None
    return task


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
        with self._slots.take(self._slots.weight(spec.cpus, spec.memory)):
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
