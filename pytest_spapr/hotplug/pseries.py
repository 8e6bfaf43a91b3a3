"""A machine with what can be plugged into it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING

from pytest_spapr.hotplug.attempt import Attempt
from pytest_spapr.hotplug.cores import Cores
from pytest_spapr.hotplug.dimms import Dimms
from pytest_spapr.hotplug.judge import Judge
from pytest_spapr.hotplug.outcome import Outcome
from pytest_spapr.hotplug.pci import Pci
from pytest_spapr.images.store import GuestImage
from pytest_spapr.machine import Harness, Machine
from pytest_spapr.qemu.argv import MachineSpec
from pytest_spapr.timeline import Timeline

if TYPE_CHECKING:
    from pytest_spapr.hotplug.device import Device


class PseriesMachine(Machine):
    """A running pseries machine that devices can be plugged into and unplugged from.

    :ivar cores: :ivar dimms: :ivar pci: its devices, by kind. :ivar attempts: every attempt made on it, in order.
    :ivar observers: called with each attempt when its verdict stands.
    """

    def __init__(self, harness: Harness, spec: MachineSpec, image: GuestImage | None, timeline: Timeline) -> None:
        super().__init__(harness, spec, image, timeline)
        self.cores = Cores(self)
        self.dimms = Dimms(self)
        self.pci = Pci(self)
        self.attempts: list[Attempt] = []
        self.observers: list[Callable[[Attempt], None]] = []
        self._ids: Counter[str] = Counter()

    def new_id(self, prefix: str) -> str:
        """Return an id that no device of this machine has had."""
        self._ids[prefix] += 1
        return f"{prefix}{self._ids[prefix]}"

    def unplug(self, device: Device, seconds: float | None = None) -> Attempt:
        """Make an attempt; see ``Device.unplug``."""
        return self._keep(self._judge(device, seconds).attempt())

    def follow(self, device: Device, attempt: Attempt, seconds: float | None = None) -> Attempt:
        """Follow a pending attempt; see ``Device.follow``."""
        return self._keep(self._judge(device, seconds).follow(attempt))

    def is_pending(self, device: Device) -> bool:
        """Return whether the last attempt that QEMU accepted for the device left it pending: QEMU does not announce it again."""
        accepted = [a for a in self.attempts if a.device == device.id and a.outcome is not Outcome.REJECTED]
        return bool(accepted) and accepted[-1].outcome is Outcome.PENDING

    def _judge(self, device: Device, seconds: float | None) -> Judge:
        return Judge(device, self.budgets.unplug if seconds is None else seconds)

    def _keep(self, attempt: Attempt) -> Attempt:
        self.attempts.append(attempt)
        for observer in self.observers:
            observer(attempt)
        return attempt
