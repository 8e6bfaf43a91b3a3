"""PCI devices in the slots of a PCI host bridge (PHB)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

from pytest_spapr.deadline import Deadline
from pytest_spapr.errors import MachineError
from pytest_spapr.guest import kernel_log
from pytest_spapr.hotplug import drc
from pytest_spapr.hotplug.drmgr_device import DrmgrDevice
from pytest_spapr.hotplug.ledger import Ledger
from pytest_spapr.hotplug.outcome import Kind, Presence
from pytest_spapr.machine import Machine
from pytest_spapr.qemu.argv import DISCARDING

#: The bus of the PHB that every machine has.
DEFAULT_BUS: Final = "pci.0"
_SLOTS: Final = 32
_FUNCTIONS: Final = 8


class PciDevice(DrmgrDevice):
    """A PCI function.

    :ivar driver: QEMU's device model. :ivar slot: :ivar function: where it is on its PHB's bus.
    :ivar domain: the guest's number of its PHB. :ivar bridge: that it is behind, if it is behind one.
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
        bridge: PciBridge | None = None,
    ) -> None:
        super().__init__(machine, ledger, device_id, drcs)
        self.driver = driver
        self.slot = slot
        self.function = function
        self.domain = domain
        self.bridge = bridge

    @property
    def address(self) -> str:
        """The function's address in the guest; a guest command behind a bridge, whose bus each boot may number anew.

        :raises MachineError: the guest knows of no bus behind the bridge.
        """
        if (address := self._address()) is None:
            raise MachineError(f"{self.id} has no address: the guest knows of no bus behind the bridge that it is plugged into")
        return address

    def guest_presence(self) -> Presence:
        return Presence.PRESENT if self._address() in self.machine.guest.pci.functions() else Presence.ABSENT

    def _address(self) -> str | None:
        bus: int | None = 0
        if self.bridge is not None:
            above = self.bridge._address()
            bus = None if above is None else self.machine.guest.pci.secondary_bus(above)
        return None if bus is None else f"{self.domain:04x}:{bus:02x}:{self.slot:02x}.{self.function}"

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
        return any(device["qdev_id"] == self.id for bus in buses for device in _with_what_is_behind(bus["devices"]))


def _with_what_is_behind(devices: Iterable[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
    """Yield devices of ``query-pci`` and those behind the bridges among them."""
    for device in devices:
        yield device
        yield from _with_what_is_behind(device.get("pci_bridge", {}).get("devices", ()))


class PciBridge(PciDevice):
    """A PCI bridge, which QEMU never lets go (spapr_pci_unplug_request). :ivar pci: the slots behind it, from 1 on."""

    def __init__(self, machine: Machine, ledger: Ledger, bridge: PciDevice) -> None:
        place = {"function": bridge.function, "domain": bridge.domain}
        super().__init__(machine, ledger, bridge.id, bridge.drcs, bridge.driver, bridge.slot, bridge=bridge.bridge, **place)
        self.pci = Pci(machine, ledger, domain=bridge.domain, bridge=self)


class Pci:
    """The PCI slots of one bus: a PHB's, or the one behind a bridge.

    :param bus: QEMU's name of a PHB's bus; ``pci.0`` is that of the PHB that every machine has.
    :param bridge: the bridge that the bus is behind, if it is behind one.
    :ivar domain: the guest's number of the PHB, as last seen.
    """

    def __init__(
        self, machine: Machine, ledger: Ledger, *, bus: str = DEFAULT_BUS, domain: int = 0, bridge: PciBridge | None = None
    ) -> None:
        self._machine = machine
        self._ledger = ledger
        # A bridge's bus has its name and is below it in QEMU's tree.
        self._bus = bridge.id if bridge else bus
        self._path = f"{bridge.qom_path}/{bridge.id}" if bridge else bus
        self._bridge = bridge
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
        :raises MachineError: a balloon for a clone whose QEMU (before 8.2) would spoil the template by it.
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

    def plug_bridge(self, chassis: int, *, slot: int | None = None) -> PciBridge:
        """Plug a bridge and wait until the guest has it; about 1 s under TCG. What is behind it comes and goes by its ``pci``.

        :param chassis: its number among all bridges of the PHB, 1 to 255. :param slot: default: the first that is free.
        :raises: as :meth:`plug`.
        """
        return PciBridge(self._machine, self._ledger, self.plug("pci-bridge", slot=slot, chassis_nr=chassis))

    def _add(
        self, driver: str, slot: int, function: int, device_id: str | None, properties: dict[str, Any], deadline: Deadline
    ) -> PciDevice:
        machine = self._machine
        if machine.shares_ram and any(word in driver for word in DISCARDING):
            raise MachineError(
                f"{driver} gives memory back to the host, which {machine.build.version_text} would take out of the template of this "
                'machine: ask for one that is no clone, with @pytest.mark.spapr(start="boot")'
            )
        device_id = device_id or self._ledger.new_id("pci")
        since = machine.timeline.mark()
        machine.timeline.step(f"plug {driver} {device_id} in slot {slot}.{function} of {self._bus}")
        # Without bus= the device can land on a PHB that was hot-added.
        place = {"bus": self._bus, "addr": f"{slot:#x}.{function:#x}"}
        machine.qmp.execute("device_add", {"driver": driver, "id": device_id, **place, **properties})
        drcs = drc.attached(machine.timeline, since, 1, deadline)
        return PciDevice(
            machine, self._ledger, device_id, drcs, driver, slot, function=function, domain=self.domain, bridge=self._bridge
        )

    def _free_slot(self) -> int:
        # query-pci does not say which of the buses is which: all are number 0 of their PHB.
        qmp = self._machine.qmp
        path = self._path
        links = [child["name"] for child in qmp.execute("qom-list", {"path": path}) if child["name"].startswith("child[")]
        taken = {qmp.execute("qom-get", {"path": f"{path}/{link}", "property": "addr"}) // _FUNCTIONS for link in links}
        # Slot 0 behind a bridge is that of its own hot-plug controller (SHPC).
        free = next((slot for slot in range(1 if self._bridge else 0, _SLOTS) if slot not in taken), None)
        if free is None:
            raise MachineError(f"all {_SLOTS} slots of {self._bus} are taken")
        return free
