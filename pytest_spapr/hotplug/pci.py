"""PCI devices in slots of the default PHB."""

from __future__ import annotations

from typing import Any, Final

from pytest_spapr.deadline import Deadline
from pytest_spapr.errors import MachineError
from pytest_spapr.guest.services import DRMGR_BEGAN, DRMGR_ENDED
from pytest_spapr.hotplug import drc
from pytest_spapr.hotplug.device import Device
from pytest_spapr.hotplug.evidence import Clue
from pytest_spapr.hotplug.ledger import Ledger
from pytest_spapr.hotplug.outcome import Kind, Presence
from pytest_spapr.machine import Machine
from pytest_spapr.timeline import Lane, Record

_BUS: Final = "pci.0"
_SLOTS: Final = 32


class PciDevice(Device):
    """A PCI function. :ivar driver: QEMU's device model. :ivar slot: its slot on ``pci.0``."""

    kind = Kind.PCI

    def __init__(self, machine: Machine, ledger: Ledger, device_id: str, drcs: tuple[int, ...], driver: str, slot: int) -> None:
        super().__init__(machine, ledger, device_id, drcs)
        self.driver = driver
        self.slot = slot

    @property
    def address(self) -> str:
        """The function's address in the guest."""
        return f"0000:00:{self.slot:02x}.0"

    def guest_presence(self) -> Presence:
        return Presence.PRESENT if self.address in self.machine.guest.pci.functions() else Presence.ABSENT

    def plug_clue(self, record: Record, seen: list[str]) -> Clue | None:
        return self._drmgr_clue(record, seen)

    def unplug_clue(self, record: Record) -> Clue | None:
        return self._drmgr_clue(record, [])

    def _drmgr_clue(self, record: Record, seen: list[str]) -> Clue | None:
        if record.lane is not Lane.SERVICE or f"{self.drcs[0]:#x}" not in record.text:
            return None
        if DRMGR_BEGAN.match(record.text):
            return Clue.BEGAN
        if ended := DRMGR_ENDED.match(record.text):
            seen.append(record.text)
            return Clue.DONE if ended["status"] == "0" else Clue.FAILED
        return None

    def _queried(self) -> bool:
        buses = self.machine.qmp.execute("query-pci")
        return any(device["qdev_id"] == self.id for bus in buses for device in bus["devices"])


class Pci:
    """A machine's PCI slots on the default PHB."""

    def __init__(self, machine: Machine, ledger: Ledger) -> None:
        self._machine = machine
        self._ledger = ledger

    def plug(
        self, driver: str, *, slot: int | None = None, device_id: str | None = None, wait: bool = True, **properties: Any
    ) -> PciDevice:
        """Plug a PCI device and wait until the guest's drmgr has configured it; about 1 s under TCG.

        :param driver: QEMU's device model, e.g. ``virtio-rng-pci``. :param slot: on ``pci.0``; default: the first that is free.
        :param wait: False returns with QEMU's reply. :param properties: more of ``device_add``, e.g. ``drive="disk0"``.
        :raises QmpRefused: QEMU refused. :raises NotConfigured: the guest did not take it.
        """
        machine = self._machine
        slot = self._free_slot() if slot is None else slot
        device_id = device_id or self._ledger.new_id("pci")
        since = machine.timeline.mark()
        machine.timeline.step(f"plug {driver} {device_id} in slot {slot}")
        # Without bus= the device can land on a PHB that was hot-added.
        machine.qmp.execute("device_add", {"driver": driver, "id": device_id, "bus": _BUS, "addr": f"{slot:#x}", **properties})
        deadline = Deadline(machine.budgets.plug)
        device = PciDevice(machine, self._ledger, device_id, drc.attached(machine.timeline, since, 1, deadline), driver, slot)
        if wait and machine.has_guest:
            device.await_configured(since, deadline)
        return device

    def _free_slot(self) -> int:
        bus = next(bus for bus in self._machine.qmp.execute("query-pci") if bus["bus"] == 0)
        taken = {device["slot"] for device in bus["devices"]}
        free = next((slot for slot in range(_SLOTS) if slot not in taken), None)
        if free is None:
            raise MachineError(f"all {_SLOTS} slots of {_BUS} are taken")
        return free
