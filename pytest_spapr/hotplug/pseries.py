"""A machine with what can be plugged into it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from pytest_spapr.hotplug.attempt import Attempt
from pytest_spapr.hotplug.cores import Cores
from pytest_spapr.hotplug.dimms import Dimms
from pytest_spapr.hotplug.ledger import Ledger
from pytest_spapr.hotplug.nvdimm import Nvdimms
from pytest_spapr.hotplug.pci import Pci
from pytest_spapr.hotplug.phb import Phbs
from pytest_spapr.hotplug.vfio import Vfio
from pytest_spapr.images.store import GuestImage
from pytest_spapr.machine import Harness, Machine
from pytest_spapr.qemu.argv import MachineSpec
from pytest_spapr.timeline import Timeline


class PseriesMachine(Machine):
    """A running pseries machine that devices can be plugged into and unplugged from.

    :ivar cores: :ivar dimms: :ivar nvdimms: :ivar pci: :ivar phbs: its devices, by kind. :ivar vfio: those that are passed through.
    """

    def __init__(self, harness: Harness, spec: MachineSpec, image: GuestImage | None, timeline: Timeline) -> None:
        super().__init__(harness, spec, image, timeline)
        self._ledger = Ledger()
        self.cores = Cores(self, self._ledger)
        self.dimms = Dimms(self, self._ledger)
        self.nvdimms = Nvdimms(self, self._ledger)
        self.pci = Pci(self, self._ledger)
        self.phbs = Phbs(self, self._ledger)
        self.vfio = Vfio(self, self._ledger, self.phbs)

    def quit(self) -> None:
        """As ``Machine.quit``. Passed-through devices go first: QEMU would wait for the answers of one that holds them back."""
        self.vfio.close()
        super().quit()

    @property
    def backdoor(self) -> Path | None:
        """The socket of the second monitor, where it has one; another one after :meth:`migrate`."""
        door = self._instance.backdoor
        return None if door is None else door.path

    @property
    def attempts(self) -> list[Attempt]:
        """Every attempt made on this machine, in order."""
        return self._ledger.attempts

    @property
    def observers(self) -> list[Callable[[Attempt], None]]:
        """Functions that are called with each attempt when its verdict stands."""
        return self._ledger.observers
