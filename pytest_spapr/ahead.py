"""The next test's machine, started while a test runs."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from pytest_spapr.errors import SpaprError
from pytest_spapr.starts import Starter
from pytest_spapr.timeline import Timeline

if TYPE_CHECKING:
    from pytest_spapr.hotplug.pseries import PseriesMachine
    from pytest_spapr.images.store import GuestImage
    from pytest_spapr.machine import Harness
    from pytest_spapr.qemu.argv import MachineSpec
    from pytest_spapr.slots import Slots


class Ahead:
    """Holds at most one machine that nobody has asked for yet: a clone that waits, paused, with its ssh connection open.

    What goes wrong with it is nobody's business: whoever wants a machine then starts one and sees for himself. Used by one thread.
    """

    def __init__(self, starter: Starter, shared: Harness, slots: Slots) -> None:
        self._starter = starter
        self._shared = shared
        self._slots = slots
        self._next: _Preparation | None = None

    def prepare(self, spec: MachineSpec, image: GuestImage) -> None:
        """Start such a machine in the background if its template exists; one that was prepared and does not fit is dropped."""
        if self._next is not None and not self._next.fits(spec, image):
            self.drop()
        if self._next is None:
            self._next = _Preparation(self._starter, self._shared, self._slots, spec, image)

    def take(self, spec: MachineSpec, image: GuestImage) -> PseriesMachine | None:
        """Return the machine that was prepared, running, if it is such a one."""
        if self._next is None or not self._next.fits(spec, image):
            return None
        machine = self._next.take()
        # Not before: Ctrl-C during the wait leaves it to be dropped.
        self._next = None
        return machine

    def drop(self) -> None:
        """End what was prepared and not taken."""
        if self._next is not None:
            prepared, self._next = self._next, None
            prepared.drop()


class _Preparation:
    """One machine on its way."""

    def __init__(self, starter: Starter, shared: Harness, slots: Slots, spec: MachineSpec, image: GuestImage) -> None:
        self._starter = starter
        self._slots = slots
        self._shared = shared
        self._spec = spec
        self._image = image
        self._machine: PseriesMachine | None = None
        self._thread = threading.Thread(target=self._prepare, name="spapr-ahead", daemon=True)
        self._thread.start()

    def fits(self, spec: MachineSpec, image: GuestImage) -> bool:
        return (self._spec, self._image.directory) == (spec, image.directory)

    def take(self) -> PseriesMachine | None:
        self._thread.join()
        if self._machine is None:
            return None
        try:
            self._machine.cont()
            self._machine.guest.renew()
        except SpaprError:
            self.drop()
            return None
        return self._machine

    def drop(self) -> None:
        self._thread.join()
        if self._machine is not None:
            self._machine.close()

    def _prepare(self) -> None:
        # Paused, it needs no slot any more.
        lease = self._slots.try_take(self._slots.weight(self._spec.vcpus, self._spec.memory)) or self._slots.preparation()
        if lease is not None:
            with lease:
                self._start()

    def _start(self) -> None:
        try:
            machine = self._starter.clone(self._shared, self._spec, self._image, Timeline())
            if machine is None:
                return
            try:
                # The first command costs more than later ones: it is new to TCG.
                machine.guest.run("true")
                machine.stop()
            except BaseException:
                machine.close()
                raise
            self._machine = machine
        except (SpaprError, OSError):
            return
