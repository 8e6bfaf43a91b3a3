"""Memory: pc-dimm devices, made of LMBs."""

from __future__ import annotations

from typing import Any

from pytest_spapr.deadline import Deadline
from pytest_spapr.errors import MachineError
from pytest_spapr.guest import kernel_log
from pytest_spapr.guest.memory import LMB
from pytest_spapr.hotplug import drc
from pytest_spapr.hotplug.backend import RAM, Backend
from pytest_spapr.hotplug.device import Device, presence
from pytest_spapr.hotplug.evidence import Clue
from pytest_spapr.hotplug.ledger import Ledger
from pytest_spapr.hotplug.outcome import Kind, Presence
from pytest_spapr.machine import Machine
from pytest_spapr.timeline import Record

_MIB = 1 << 20


class Dimm(Device):
    """A ``pc-dimm``. :ivar size: in MiB. :ivar backend: the id of its memory backend."""

    kind = Kind.DIMM

    def __init__(self, machine: Machine, ledger: Ledger, device_id: str, drcs: tuple[int, ...], size: int, backend: str) -> None:
        super().__init__(machine, ledger, device_id, drcs)
        self.size = size
        self.backend = backend

    @property
    def blocks(self) -> tuple[int, ...]:
        """The guest's numbers of the DIMM's memory blocks, one for each LMB, lowest first."""
        return tuple(drc.connector_id(index) for index in self.drcs)

    def guest_presence(self) -> Presence:
        """Return PRESENT only if every block is there and online."""
        states = self.machine.guest.memory.blocks()
        mine = [states[block] for block in self.blocks if block in states]
        return Presence.PARTIAL if mine and set(mine) != {"online"} else presence(len(mine), len(self.blocks))

    def delete_backend(self) -> None:
        """Delete the memory backend, which QEMU keeps after the DIMM is gone.

        :raises QmpRefused: the DIMM still maps it.
        """
        self.machine.qmp.execute("object-del", {"id": self.backend})

    def plug_clue(self, record: Record, seen: list[str]) -> Clue | None:
        if (match := kernel_log.says(record, kernel_log.LMB_ADDED)) and int(match["drc"], 16) in self.drcs:
            seen.append(match["drc"])
            return Clue.DONE if len(set(seen)) == len(self.drcs) else Clue.BEGAN
        if kernel_log.says(record, kernel_log.MEMORY_ADD_FAILED):
            seen.append(record.text)
            return Clue.FAILED
        return None

    def unplug_clue(self, record: Record) -> Clue | None:
        if kernel_log.says(record, kernel_log.MEMORY_REMOVAL_BEGAN):
            return Clue.BEGAN
        return Clue.FAILED if kernel_log.says(record, kernel_log.MEMORY_REMOVAL_FAILED) else None

    def _queried(self) -> bool:
        devices = self.machine.qmp.execute("query-memory-devices")
        return any(device["data"].get("id") == self.id for device in devices)


class Dimms:
    """A machine's DIMMs."""

    def __init__(self, machine: Machine, ledger: Ledger) -> None:
        self._machine = machine
        self._ledger = ledger

    def plug(
        self, size: int = 256, *, device_id: str | None = None, backend: Backend = RAM, wait: bool = True, **properties: Any
    ) -> Dimm:
        """Plug a DIMM with a backend of its own and wait until the guest has every block online; about 0.1 s under TCG.

        :param size: MiB, a multiple of 256. :param backend: where its memory comes from. :param wait: False returns with QEMU's reply.
        :param properties: more properties of ``device_add``, e.g. ``slot=2``.
        :raises QmpRefused: QEMU refused; the backend is deleted again. :raises NotConfigured: the guest did not take it.
        """
        machine = self._machine
        device_id = device_id or self._ledger.new_id("dimm")
        backend_id = f"{device_id}-memory"
        since = machine.timeline.mark()
        machine.timeline.step(f"plug dimm {device_id} of {size} MiB")
        with backend.made(machine, backend_id, size * _MIB):
            machine.qmp.execute("device_add", {"driver": "pc-dimm", "id": device_id, "memdev": backend_id, **properties})
        deadline = Deadline(machine.budgets.plug)
        drcs = drc.attached(machine.timeline, since, size * _MIB // LMB, deadline)
        dimm = Dimm(machine, self._ledger, device_id, drcs, size, backend_id)
        if wait and machine.has_guest:
            dimm.await_configured(since, deadline)
        return dimm

    def in_slot(self, slot: int) -> Dimm:
        """Return the DIMM in a slot, also one of QEMU's command line.

        :raises MachineError: there is none, or it has no id.
        """
        for device in self._machine.qmp.execute("query-memory-devices"):
            data = device["data"]
            if device["type"] == "dimm" and data["slot"] == slot:
                if "id" not in data:
                    raise MachineError(
                        f"the DIMM in slot {slot} has no id, which device_del names it by: give it one (-device ...,id=)"
                    )
                drcs = tuple(drc.LMB_TYPE + (data["addr"] + offset) // LMB for offset in range(0, data["size"], LMB))
                backend = data["memdev"].rpartition("/")[2]
                return Dimm(self._machine, self._ledger, data["id"], drcs, data["size"] // _MIB, backend)
        raise MachineError(f"the machine has no DIMM in slot {slot}")
