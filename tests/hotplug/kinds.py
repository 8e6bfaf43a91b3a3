"""A typical device of each kind, and the silence that is typical for it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from pytest_spapr import Kind, PseriesMachine
from pytest_spapr.hotplug.device import Device


def plug(machine: PseriesMachine, kind: Kind, **options: Any) -> Device:
    """Plug a typical device of a kind."""
    match kind:
        case Kind.CORE:
            return machine.cores.plug(**options)
        case Kind.DIMM:
            return machine.dimms.plug(**options)
        case Kind.PCI:
            return machine.pci.plug("virtio-rng-pci", **options)
        case Kind.PHB:
            return machine.phbs.plug(**options)
        case _:
            raise NotImplementedError(kind)


@contextmanager
def silenced(machine: PseriesMachine, kind: Kind) -> Iterator[None]:
    """Make the guest silent about an unplug of this kind, by the cause that is typical for it, and lift that cause again.

    A core: only a guest that does not run is silent. A DIMM: its first LMB is refused. A PCI device or a PHB: rtas_errd is gone.
    """
    match kind:
        case Kind.CORE:
            silence: AbstractContextManager[None] = machine.paused()
        case Kind.DIMM:
            silence = machine.guest.memory.offline_refused()
        case Kind.PCI | Kind.PHB:
            silence = machine.guest.rtas_errd.killed()
        case _:
            raise NotImplementedError(kind)
    with silence:
        yield


#: The kinds that can go again.
KINDS = (Kind.CORE, Kind.DIMM, Kind.PCI, Kind.PHB)

#: The contract's name of the silence that :func:`silenced` makes.
SILENCE = {
    Kind.CORE: "machine paused",
    Kind.DIMM: "first LMB refused",
    Kind.PCI: "rtas_errd absent",
    Kind.PHB: "rtas_errd absent",
}
