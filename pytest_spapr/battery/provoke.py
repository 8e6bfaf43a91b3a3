"""A typical device of each kind, and the silence that is typical for it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from types import MappingProxyType
from typing import Any, Final

from pytest_spapr.hotplug.device import Device
from pytest_spapr.hotplug.outcome import Kind
from pytest_spapr.hotplug.pseries import PseriesMachine

#: The kinds that can go again.
KINDS: Final = (Kind.CORE, Kind.DIMM, Kind.PCI, Kind.PHB)

#: The contract's name of the silence that :func:`silenced` makes.
SILENCE: Final[Mapping[Kind, str]] = MappingProxyType(
    {Kind.CORE: "machine paused", Kind.DIMM: "first LMB refused", Kind.PCI: "rtas_errd absent", Kind.PHB: "rtas_errd absent"}
)


def plug(machine: PseriesMachine, kind: Kind, **options: Any) -> Device:
    """Plug a typical device of a kind.

    :param options: of ``plug()`` of that kind. :raises QmpRefused: QEMU refused. :raises NotConfigured: the guest did not take it.
    """
    match kind:
        case Kind.CORE:
            return machine.cores.plug(**options)
        case Kind.DIMM:
            return machine.dimms.plug(**options)
        case Kind.PCI:
            return machine.pci.plug("virtio-rng-pci", **options)
        case Kind.PHB:
            return machine.phbs.plug(**options)
        case Kind.NVDIMM:
            return machine.nvdimms.plug(**options)


@contextmanager
def silenced(machine: PseriesMachine, kind: Kind) -> Iterator[None]:
    """Make the guest silent about an unplug of this kind, by the cause that is typical for it, and lift that cause again.

    A core: only a guest that does not run is silent. A DIMM: its first LMB is refused. A PCI device or a PHB: rtas_errd is gone.

    :raises ValueError: a kind that no guest is asked for.
    """
    match kind:
        case Kind.CORE:
            silence: AbstractContextManager[None] = machine.paused()
        case Kind.DIMM:
            silence = machine.guest.memory.offline_refused()
        case Kind.PCI | Kind.PHB:
            silence = machine.guest.rtas_errd.killed()
        case Kind.NVDIMM:
            raise ValueError(f"no guest is asked for its {kind}")
    with silence:
        yield
