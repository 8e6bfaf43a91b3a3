"""Starts the machine that a person sits at."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

from pytest_spapr.timeline import Timeline

if TYPE_CHECKING:
    from pytest_spapr.cells import Cell
    from pytest_spapr.hotplug.pseries import PseriesMachine
    from pytest_spapr.progress import Progress


@contextmanager
def machine_of(
    cell: Cell, shape: dict[str, Any], timeline: Timeline, progress: Progress, *, guest: bool
) -> Iterator[PseriesMachine]:
    """Start a machine with a second monitor, for the ``with`` block; it ends with it. Waits for slots that others have.

    :param shape: of the machine, as of ``MachineSpec``. :param guest: whether it boots the cell's image, or a template of it does.
    :raises SpaprError: it does not come up.
    """
    from pytest_spapr.deadline import budgets
    from pytest_spapr.machine import Harness
    from pytest_spapr.qemu.argv import MachineSpec
    from pytest_spapr.qemu.qmp import QmpLoop
    from pytest_spapr.slots import Slots
    from pytest_spapr.starts import Starter

    settings = cell.settings
    spec = MachineSpec(accelerator=cell.accelerator(), **shape)
    slots = Slots.of_host()
    with ExitStack() as stack:
        loop = stack.enter_context(QmpLoop())
        harness = Harness(build=cell.build(), loop=loop, budgets=budgets(spec.accelerator), backdoors=True)
        starter = Starter(cell.cache(), settings.template_space.value)
        stack.callback(starter.close)
        stack.enter_context(slots.take(slots.weight(spec.vcpus, spec.memory), progress=progress))
        if guest and settings.start.value == "clone":
            started = starter.start(harness, spec, cell.image(), timeline, progress)
        else:
            started = starter.boot(harness, spec, cell.image() if guest else None, timeline, boot=guest)
        stack.callback(started.machine.close)
        progress.done()
        yield started.machine
