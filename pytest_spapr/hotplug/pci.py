"""PCI devices in the slots of a PCI host bridge (PHB)."""

from __future__ import annotations

from typing import Any, Final

from pytest_spapr.deadline import Deadline
from pytest_spapr.errors import MachineError
from pytest_spapr.guest import kernel_log
from pytest_spapr.hotplug import drc
from pytest_spapr.hotplug.drmgr_device import DrmgrDevice
from pytest_spapr.hotplug.ledger import Ledger
from pytest_spapr.hotplug.outcome import Kind, Presence
from pytest_spapr.machine import Machine

_DEFAULT_BUS: Final = "pci.0"
_SLOTS: Final = 32
_FUNCTIONS: Final = 8


class PciDevice(DrmgrDevice):
    """A PCI function.

    :ivar driver: QEMU's device model. :ivar slot: :ivar function: where it is on its PHB's bus.
    :ivar domain: the guest's number of its PHB.
    """

    kind = Kind.PCI

    def __init__(
        self,
        machine: Machine,
        ledger: Ledger,
        device_id: str,
        drcs: tuple[int, ...],
        driver: str,
        slot: int,
        *,
        function: int = 0,
        domain: int = 0,
    ) -> None:
        super().__init__(machine, ledger, device_id, drcs)
        self.driver = driver
        self.slot = slot
        self.function = function
        self.domain = domain

    @property
    def address(self) -> str:
        """The function's address in the guest."""
        return f"{self.domain:04x}:00:{self.slot:02x}.{self.function}"

    def guest_presence(self) -> Presence:
        return Presence.PRESENT if self.address in self.machine.guest.pci.functions() else Presence.ABSENT

    def is_pending(self) -> bool:
        """Return whether an earlier command has QEMU wait for this function: one for function 0 has it wait for all of the slot."""
        return super().is_pending() or (self.function != 0 and bool(self.waiting))

    def unannounced(self, since: int) -> str | None:
        """Return the evidence if QEMU told the guest nothing of an unplug since the cursor.

        It tells of a slot's functions when function 0 is to go, and of no other (spapr_pci_unplug_request). Costs a guest command.
        """
        if self.function == 0:
            return None
        # Its answer comes after whatever the guest's kernel had been told before.
        self.machine.guest.pci.functions()
        if any(kernel_log.says(record, kernel_log.HOTPLUG_EVENT) for record in self.machine.timeline.since(since)):
            return None
        return f"guest: no hotplug event came; function {self.function} of a slot is announced together with function 0 only"

    def _queried(self) -> bool:
        buses = self.machine.qmp.execute("query-pci")
        return any(device["qdev_id"] == self.id for bus in buses for device in bus["devices"])


class Pci:
    """The PCI slots of one PHB.

    :param bus: QEMU's name of the bus; ``pci.0`` is that of the PHB that every machine has.
    :ivar domain: the guest's number of the PHB, as last seen.
    """

    def __init__(self, machine: Machine, ledger: Ledger, *, bus: str = _DEFAULT_BUS, domain: int = 0) -> None:
        self._machine = machine
        self._ledger = ledger
        self._bus = bus
        self.domain = domain

    def plug(
        self,
        driver: str,
        *,
        slot: int | None = None,
        function: int = 0,
        device_id: str | None = None,
        wait: bool = True,
        **properties: Any,
    ) -> PciDevice:
        """Plug a PCI function and wait until the guest's drmgr has configured it; about 1 s under TCG.

        A function other than 0 is not waited for: the guest is told of it when function 0 follows. See :meth:`plug_functions`.

        :param driver: QEMU's device model, e.g. ``virtio-rng-pci``. :param slot: on this bus; default: the first that is free.
        :param wait: False returns with QEMU's reply. :param properties: more of ``device_add``, e.g. ``drive="disk0"``.
        :raises QmpRefused: QEMU refused. :raises NotConfigured: the guest did not take it.
        """
        machine = self._machine
        slot = self._free_slot() if slot is None else slot
        since = machine.timeline.mark()
        deadline = Deadline(machine.budgets.plug)
        device = self._add(driver, slot, function, device_id, properties, deadline)
        if wait and function == 0 and machine.has_guest:
            device.await_configured(since, deadline)
        return device

    def plug_functions(self, driver: str, functions: int = 2, *, slot: int | None = None, **properties: Any) -> list[PciDevice]:
        """Plug a multifunction device, function 0 last as QEMU wants it, and wait until the guest has all of it; 1 s each.

        :param functions: how many, 2 to 8. :param slot: default: the first that is free.
        :param properties: more of every ``device_add``. :return: function 0 first.
        :raises QmpRefused: QEMU refused one; those before it stay. :raises NotConfigured: the guest did not take one.
        """
        machine = self._machine
        slot = self._free_slot() if slot is None else slot
        since = machine.timeline.mark()
        deadline = Deadline(machine.budgets.plug)
        more = {"multifunction": True, **properties}
        devices = [self._add(driver, slot, function, None, more, deadline) for function in reversed(range(functions))]
        if machine.has_guest:
            for device in devices:
                device.await_configured(since, deadline)
        return devices[::-1]

    def _add(
        self, driver: str, slot: int, function: int, device_id: str | None, properties: dict[str, Any], deadline: Deadline
    ) -> PciDevice:
        machine = self._machine
        device_id = device_id or self._ledger.new_id("pci")
        since = machine.timeline.mark()
        machine.timeline.step(f"plug {driver} {device_id} in slot {slot}.{function} of {self._bus}")
        # Without bus= the device can land on a PHB that was hot-added.
        place = {"bus": self._bus, "addr": f"{slot:#x}.{function:#x}"}
        machine.qmp.execute("device_add", {"driver": driver, "id": device_id, **place, **properties})
        drcs = drc.attached(machine.timeline, since, 1, deadline)
        return PciDevice(machine, self._ledger, device_id, drcs, driver, slot, function=function, domain=self.domain)

    def _free_slot(self) -> int:
        # query-pci does not say which of the buses is which: all are number 0 of their PHB.
        qmp = self._machine.qmp
        links = [child["name"] for child in qmp.execute("qom-list", {"path": self._bus}) if child["name"].startswith("child[")]
        taken = {qmp.execute("qom-get", {"path": f"{self._bus}/{link}", "property": "addr"}) // _FUNCTIONS for link in links}
        free = next((slot for slot in range(_SLOTS) if slot not in taken), None)
        if free is None:
            raise MachineError(f"all {_SLOTS} slots of {self._bus} are taken")
        return free
