"""PCI host bridges (PHBs): a PCI domain each, with 32 slots."""

from __future__ import annotations

from typing import Any, Final

from pytest_spapr.deadline import Deadline
from pytest_spapr.errors import MachineError
from pytest_spapr.hotplug import drc
from pytest_spapr.hotplug.device import presence
from pytest_spapr.hotplug.drmgr_device import DrmgrDevice
from pytest_spapr.hotplug.ledger import Ledger
from pytest_spapr.hotplug.outcome import Kind, Presence
from pytest_spapr.hotplug.pci import DEFAULT_BUS, Pci
from pytest_spapr.machine import Machine

# hw/ppc/spapr_pci.h: SPAPR_MAX_PHBS, and SPAPR_PCI_BASE_BUID, which the unit addresses in the device tree count from.
_PHBS: Final = 31
_BASE_BUID: Final = 0x800000020000000
_TYPE: Final = "spapr-pci-host-bridge"
# hw/ppc/spapr_drc.h: a PHB's index in the type that PHBs have.
_DRC_TYPE: Final = 0x2 << 28


class Phb(DrmgrDevice):
    """A ``spapr-pci-host-bridge``. :ivar index: its number. :ivar pci: its slots."""

    kind = Kind.PHB

    def __init__(
        self, machine: Machine, ledger: Ledger, device_id: str, drcs: tuple[int, ...], index: int, *, bus: str | None = None
    ) -> None:
        super().__init__(machine, ledger, device_id, drcs)
        self.index = index
        self.pci = Pci(machine, ledger, bus=bus or f"{device_id}.0", domain=index)

    def guest_presence(self) -> Presence:
        """Return PRESENT only if the PHB is both in the device tree and a domain of the kernel's PCI, whose number is noted."""
        bridges = self.machine.guest.pci.host_bridges()
        address = _BASE_BUID + self.index
        domain = bridges.get(address)
        if domain is not None:
            self.pci.domain = domain
        return presence((address in bridges) + (domain is not None), 2)

    def _queried(self) -> bool:
        # No query command names PHBs. The connector's link to its device is another part of QEMU than the list of devices.
        children = self.machine.qmp.execute("qom-list", {"path": f"/dr-connector/{self.drcs[0]:x}"})
        return any(child["name"] == "device" for child in children)


class Phbs:
    """A machine's PHBs."""

    def __init__(self, machine: Machine, ledger: Ledger) -> None:
        self._machine = machine
        self._ledger = ledger

    def plug(self, index: int | None = None, *, device_id: str | None = None, wait: bool = True, **properties: Any) -> Phb:
        """Plug a PHB and wait until the guest's drmgr has configured it; about 2 s under TCG, its removal takes 10 s.

        :param index: 1 to 30; default: the first that is free. :param wait: False returns with QEMU's reply.
        :param properties: more properties of ``device_add``, e.g. ``numa_node=0``.
        :raises QmpRefused: QEMU refused. :raises NotConfigured: the guest did not take it.
        """
        machine = self._machine
        index = self._free_index() if index is None else index
        device_id = device_id or self._ledger.new_id("phb")
        since = machine.timeline.mark()
        machine.timeline.step(f"plug phb {device_id} with index {index}")
        machine.qmp.execute("device_add", {"driver": _TYPE, "id": device_id, "index": index, **properties})
        deadline = Deadline(machine.budgets.plug)
        # A PHB brings the connectors of its slots with it; they are empty.
        phb = Phb(machine, self._ledger, device_id, drc.attached(machine.timeline, since, 1, deadline), index)
        if wait and machine.has_guest:
            phb.await_configured(since, deadline)
        return phb

    def boot_phb(self, index: int = 0) -> Phb:
        """Return a PHB that is there from the start: the machine's own, which has index 0, or one of the command line, with its id.

        :raises MachineError: the machine was not started with such a PHB.
        """
        for path, number in self._present().items():
            if number == index:
                own = path.startswith("/machine/unattached/")
                device_id, bus = (path, DEFAULT_BUS) if own else (path.rpartition("/")[2], None)
                phb = Phb(self._machine, self._ledger, device_id, (_DRC_TYPE | index,), index, bus=bus)
                # The guest's kernel may have given it another domain than its index.
                if self._machine.has_guest:
                    phb.guest_presence()
                return phb
        raise MachineError(f"the machine has no PHB {index}: it was not started with one")

    def _present(self) -> dict[str, int]:
        """Return the index of each PHB, by its QOM path."""
        qmp = self._machine.qmp
        return {
            f"{parent}/{child['name']}": qmp.execute("qom-get", {"path": f"{parent}/{child['name']}", "property": "index"})
            for parent in ("/machine/unattached", "/machine/peripheral")
            for child in qmp.execute("qom-list", {"path": parent})
            if child["type"] == f"child<{_TYPE}>"
        }

    def _free_index(self) -> int:
        taken = {0, *self._present().values()}
        free = next((index for index in range(_PHBS) if index not in taken), None)
        if free is None:
            raise MachineError(f"all {_PHBS} PHBs of the machine are there")
        return free
