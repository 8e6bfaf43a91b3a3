"""The devices of a history with a guest, and what the contract calls that which an unplug of one of them meets."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from pytest_spapr.hotplug.attempt import Attempt
from pytest_spapr.hotplug.device import Device
from pytest_spapr.hotplug.outcome import Kind
from pytest_spapr.hotplug.pci import PciBridge, PciDevice


@dataclass(slots=True)
class Held:
    """A device. :ivar pending: the attempt that waits for the guest. :ivar cause: the situation that it was in.

    :ivar of_boot: whether the guest has booted with it. :ivar parent: the name of what it is below, or of its slot's function 0.
    :ivar moved: whether the machine has moved since, and the QEMU that it is in was never asked.
    """

    device: Device
    pending: Attempt | None = None
    cause: str = ""
    of_boot: bool = False
    parent: str = ""
    moved: bool = False


@dataclass(frozen=True, slots=True)
class Moment:
    """Where a machine stands. :ivar devices: by name. :ivar faults: names of those that are on. :ivar paused: whether it is."""

    devices: Mapping[str, Held]
    faults: Collection[str]
    paused: bool

    def situation(self, held: Held) -> str | None:
        """Return the contract's name of what an unplug meets now; None where no row speaks of it."""
        if held.device.kind is Kind.NVDIMM or isinstance(held.device, PciBridge):
            # The rows have a guest that can be asked for its view.
            return None if self.paused else "rejection: bridge" if held.device.kind is Kind.PCI else "rejection: not supported"
        asked = self._asked_with(held)
        if asked.pending is not None:
            return self._of_repeat(asked) if self._lasts(asked) else None
        if self.paused:
            return "silence: machine paused"
        return self._of_guest(held)

    def _asked_with(self, held: Held) -> Held:
        """Return the slot's function 0 for another function of it that was asked for by its unplug, else the device itself."""
        if held.pending is not None or not isinstance(held.device, PciDevice) or not held.device.function:
            return held
        # QEMU marks all functions of a slot when it is asked for function 0 (spapr_pci_unplug_request).
        return self.devices.get(held.parent, held)

    def _of_repeat(self, held: Held) -> str | None:
        if not held.moved:
            return "repeat while pending"
        # Of DIMMs, which are told to the guest again, the rows have a guest that refuses.
        asked_of_nobody = held.device.kind is Kind.DIMM and held.cause != "silence: first LMB refused"
        return None if asked_of_nobody else "repeat after migration"

    def _of_guest(self, held: Held) -> str | None:
        """Return what a guest that runs makes of an unplug."""
        device = held.device
        match device.kind:
            case Kind.CORE:
                others = [one for one in self.devices.values() if one.device.kind is Kind.CORE and one is not held]
                return "refusal: last online CPU" if "CPU 0 offline" in self.faults and not others else "removal"
            case Kind.DIMM:
                if held.of_boot:
                    # Linux takes what it keeps from the top of its memory (memblock): it may give up all LMBs but the highest one,
                    # and where that has others below it in its DIMM, it is a refusal, of which no row speaks.
                    return "silence: memory of the boot" if device.drcs == (self._top_of_boot(),) else None
                return "silence: first LMB refused" if "offline refused" in self.faults else "removal"
        if isinstance(device, PciDevice) and device.function:
            return "silence: function 0 stays"
        if "rtas_errd killed" in self.faults:
            return "silence: rtas_errd absent"
        return "silence: drmgr locked" if "drmgr locked" in self.faults else "removal"

    def _top_of_boot(self) -> int:
        """Return the DRC index of the highest LMB of all DIMMs that the guest has booted with."""
        return max(max(held.device.drcs) for held in self.devices.values() if held.of_boot and held.device.kind is Kind.DIMM)

    def _lasts(self, held: Held) -> bool:
        """Return whether what keeps a device from going still does."""
        return {
            "silence: machine paused": self.paused,
            "silence: first LMB refused": not self.paused and "offline refused" in self.faults,
            "silence: rtas_errd absent": not self.paused and "rtas_errd killed" in self.faults,
            "silence: drmgr locked": not self.paused and "drmgr locked" in self.faults,
        }.get(held.cause, False)
