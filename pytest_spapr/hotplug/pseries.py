"""A machine with what can be plugged into it."""

from __future__ import annotations

from collections.abc import Callable

from pytest_spapr.hotplug.attempt import Attempt
from pytest_spapr.hotplug.cores import Cores
from pytest_spapr.hotplug.dimms import Dimms
from pytest_spapr.hotplug.ledger import Ledger
from pytest_spapr.hotplug.nvdimm import Nvdimms
from pytest_spapr.hotplug.pci import Pci
from pytest_spapr.hotplug.phb import Phbs
from pytest_spapr.images.store import GuestImage
from pytest_spapr.machine import Harness, Machine
from pytest_spapr.qemu.argv import MachineSpec
from pytest_spapr.timeline import Timeline


class PseriesMachine(Machine):
    """A running pseries machine that devices can be plugged into and unplugged from.

    :ivar cores: :ivar dimms: :ivar nvdimms: :ivar pci: :ivar phbs: its devices, by kind.
    """

    def __init__(self, harness: Harness, spec: MachineSpec, image: GuestImage | None, timeline: Timeline) -> None:
        super().__init__(harness, spec, image, timeline)
        self._ledger = Ledger()
        self.cores = Cores(self, self._ledger)
        self.dimms = Dimms(self, self._ledger)
        self.nvdimms = Nvdimms(self, self._ledger)
        self.pci = Pci(self, self._ledger)
        self.phbs = Phbs(self, self._ledger)

    @property
    def attempts(self) -> list[Attempt]:
        """Every attempt made on this machine, in order."""
        return self._ledger.attempts

    @property
    def observers(self) -> list[Callable[[Attempt], None]]:
        """Functions that are called with each attempt when its verdict stands."""
        return self._ledger.observers
