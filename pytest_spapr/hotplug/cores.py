"""CPU cores."""

from __future__ import annotations

from typing import Any

from pytest_spapr.deadline import Deadline
from pytest_spapr.errors import MachineError
from pytest_spapr.guest import kernel_log
from pytest_spapr.hotplug import drc
from pytest_spapr.hotplug.device import Device, presence
from pytest_spapr.hotplug.evidence import Clue
from pytest_spapr.hotplug.ledger import Ledger
from pytest_spapr.hotplug.outcome import Kind, Presence
from pytest_spapr.machine import Machine
from pytest_spapr.timeline import Record


class Core(Device):
    """A ``*-spapr-cpu-core``. :ivar core_id: its number in QEMU. :ivar threads: hardware threads."""

    kind = Kind.CORE

    def __init__(
        self, machine: Machine, ledger: Ledger, device_id: str, drcs: tuple[int, ...], core_id: int, threads: int
    ) -> None:
        super().__init__(machine, ledger, device_id, drcs)
        self.core_id = core_id
        self.threads = threads

    @property
    def hardware_ids(self) -> range:
        """The hardware ids of the core's threads, as ``physical_id`` in the guest's sysfs."""
        first = drc.connector_id(self.drcs[0])
        return range(first, first + self.threads)

    def guest_cpus(self) -> frozenset[int]:
        """Return the numbers that the guest's kernel gave to the core's threads; empty when it does not have them."""
        numbers = self.machine.guest.cpus.by_hardware_id()
        return frozenset(numbers[hardware] for hardware in self.hardware_ids if hardware in numbers)

    def guest_presence(self) -> Presence:
        return presence(len(self.guest_cpus()), self.threads)

    def plug_clue(self, record: Record, seen: list[str]) -> Clue | None:
        if (match := kernel_log.says(record, kernel_log.CORE_ADDED)) and int(match["drc"], 16) in self.drcs:
            return Clue.DONE
        if kernel_log.says(record, kernel_log.CORE_ADD_FAILED):
            seen.append(record.text)
            return Clue.FAILED
        return None

    def unplug_clue(self, record: Record) -> Clue | None:
        if (match := kernel_log.says(record, kernel_log.CORE_REMOVAL_BEGAN)) and int(match["drc"], 16) in self.drcs:
            return Clue.BEGAN
        return Clue.FAILED if kernel_log.says(record, kernel_log.CORE_REMOVAL_FAILED) else None

    def _queried(self) -> bool:
        return any(slot.get("qom-path") == self.qom_path for slot in _slots(self.machine))


class Cores:
    """A machine's cores."""

    def __init__(self, machine: Machine, ledger: Ledger) -> None:
        self._machine = machine
        self._ledger = ledger

    def slots(self) -> list[dict[str, Any]]:
        """Return ``query-hotpluggable-cpus``, lowest core first."""
        return _slots(self._machine)

    def plug(self, core_id: int | None = None, *, device_id: str | None = None, wait: bool = True, **properties: Any) -> Core:
        """Plug a core and wait until the guest has it online; 0.1 to 0.5 s under TCG.

        Under TCG one QEMU process survives ``max_cpus - cpus`` plugs in all, removals not counted (tcg_register_thread).

        :param core_id: which; default: the first that is free. :param wait: False returns with QEMU's reply.
        :param properties: more properties of ``device_add``.
        :raises QmpRefused: QEMU refused. :raises NotConfigured: the guest did not take it.
        """
        machine = self._machine
        slot = self._slot(core_id)
        core_id = slot["props"]["core-id"] if core_id is None else core_id
        device_id = device_id or self._ledger.new_id("core")
        since = machine.timeline.mark()
        machine.timeline.step(f"plug core {device_id}")
        machine.qmp.execute("device_add", {"driver": slot["type"], "id": device_id, "core-id": core_id, **properties})
        deadline = Deadline(machine.budgets.plug)
        core = Core(
            machine, self._ledger, device_id, drc.attached(machine.timeline, since, 1, deadline), core_id, slot["vcpus-count"]
        )
        if wait and machine.has_guest:
            core.await_configured(since, deadline)
        return core

    def boot_core(self, core_id: int = 0) -> Core:
        """Return a core that is there from the start. Core 0 is one that QEMU never gives up.

        :raises MachineError: the machine was not started with such a core.
        """
        slot = next((slot for slot in self.slots() if slot["props"]["core-id"] == core_id and "qom-path" in slot), None)
        if slot is None:
            raise MachineError(f"the machine has no core {core_id}: it was started with cpus={self._machine.spec.cpus}")
        threads = slot["vcpus-count"]
        # spapr_vcpu_id of hw/ppc/spapr.c: a core's hardware ids are vsmt apart.
        spacing = self._machine.qmp.execute("qom-get", {"path": "/machine", "property": "vsmt"})
        index = drc.CORE_TYPE + core_id // threads * spacing
        return Core(self._machine, self._ledger, slot["qom-path"], (index,), core_id, threads)

    def _slot(self, core_id: int | None) -> dict[str, Any]:
        slots = self.slots()
        wanted = [
            slot for slot in slots if (slot["props"]["core-id"] == core_id if core_id is not None else "qom-path" not in slot)
        ]
        # A core id that does not exist goes to QEMU all the same: its refusal is what the test wants to see.
        if not wanted and core_id is None:
            raise MachineError(f"all {len(slots)} core slots of the machine are taken: ask for more with max_cpus=")
        return (wanted or slots)[0]


def _slots(machine: Machine) -> list[dict[str, Any]]:
    answer: list[dict[str, Any]] = machine.qmp.execute("query-hotpluggable-cpus")
    return sorted(answer, key=lambda slot: int(slot["props"]["core-id"]))
