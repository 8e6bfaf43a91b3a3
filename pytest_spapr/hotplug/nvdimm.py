"""Persistent memory: ``nvdimm`` devices, which come and never go."""

from __future__ import annotations

import uuid
from typing import Any

from pytest_spapr.deadline import Deadline
from pytest_spapr.guest import kernel_log
from pytest_spapr.hotplug import drc
from pytest_spapr.hotplug.backend import RAM, Backend
from pytest_spapr.hotplug.device import Device
from pytest_spapr.hotplug.evidence import Clue
from pytest_spapr.hotplug.ledger import Ledger
from pytest_spapr.hotplug.outcome import Kind, Presence
from pytest_spapr.machine import Machine
from pytest_spapr.timeline import Record

_MIB = 1 << 20
_LABEL = 128 << 10


class Nvdimm(Device):
    """An ``nvdimm``. :ivar size: in MiB, without its label area. :ivar backend: the id of its memory backend."""

    kind = Kind.NVDIMM

    def __init__(self, machine: Machine, ledger: Ledger, device_id: str, drcs: tuple[int, ...], size: int, backend: str) -> None:
        super().__init__(machine, ledger, device_id, drcs)
        self.size = size
        self.backend = backend

    def guest_presence(self) -> Presence:
        """Return the view of the device tree: the kernel's driver (papr_scm) need not be there."""
        return Presence.PRESENT if self.drcs[0] in self.machine.guest.memory.persistent() else Presence.ABSENT

    def plug_clue(self, record: Record, seen: list[str]) -> Clue | None:
        if (match := kernel_log.says(record, kernel_log.PMEM_ADDED)) and int(match["drc"], 16) in self.drcs:
            return Clue.DONE
        if kernel_log.says(record, kernel_log.PMEM_ADD_FAILED):
            seen.append(record.text)
            return Clue.FAILED
        return None

    def unplug_clue(self, record: Record) -> Clue | None:  # noqa: ARG002 - QEMU asks no guest for an NVDIMM
        return None

    def _queried(self) -> bool:
        devices = self.machine.qmp.execute("query-memory-devices")
        return any(device["type"] == "nvdimm" and device["data"].get("id") == self.id for device in devices)


class Nvdimms:
    """A machine's NVDIMMs. They take DIMM slots."""

    def __init__(self, machine: Machine, ledger: Ledger) -> None:
        self._machine = machine
        self._ledger = ledger

    def plug(
        self, size: int = 256, *, device_id: str | None = None, backend: Backend = RAM, wait: bool = True, **properties: Any
    ) -> Nvdimm:
        """Plug an NVDIMM with a backend and a UUID of its own and wait until it is in the guest's device tree; 0.1 s under TCG.

        A guest that boots with one makes a DMA window whose table is 1 GiB of QEMU's state: from then on a verdict takes 7 s more, and a
        move 15 s (see ``device_state``).

        :param size: MiB, a multiple of 256; a label area of 128 KiB comes on top. :param wait: False returns with QEMU's reply.
        :param backend: where its memory comes from; of RAM, which is the default, nothing persists.
        :param properties: more properties of ``device_add``, or others for those that are set here (``uuid``, ``label-size``).
        :raises QmpRefused: QEMU refused; the backend is deleted again. :raises NotConfigured: the guest did not take it.
        """
        machine = self._machine
        device_id = device_id or self._ledger.new_id("nvdimm")
        backend_id = f"{device_id}-memory"
        since = machine.timeline.mark()
        machine.timeline.step(f"plug nvdimm {device_id} of {size} MiB")
        needed = {"driver": "nvdimm", "id": device_id, "memdev": backend_id, "label-size": _LABEL, "uuid": str(uuid.uuid4())}
        with backend.made(machine, backend_id, size * _MIB + _LABEL):
            machine.qmp.execute("device_add", {**needed, **properties})
        deadline = Deadline(machine.budgets.plug)
        nvdimm = Nvdimm(machine, self._ledger, device_id, drc.attached(machine.timeline, since, 1, deadline), size, backend_id)
        if wait and machine.has_guest:
            nvdimm.await_configured(since, deadline)
        return nvdimm
