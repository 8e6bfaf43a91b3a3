"""Dynamic reconfiguration that the guest begins by itself, and what it does to QEMU's connectors."""

from __future__ import annotations

from typing import Final

from pytest_spapr import Guest, PseriesMachine, Record
from pytest_spapr.guest.completed import Completed
from pytest_spapr.hotplug import drc
from pytest_spapr.hotplug.outcome import Kind

_DRIVEN: Final = ("set_isolation_state ", "set_allocation_state ", "set_configured")

#: What a guest does to the connector of a device that it gives up, or takes, of its own accord. LoPAR 13.5: those of cores and PHBs are
#: logical. Linux isolates an LMB as the first step, which QEMU refuses, and drops the matter.
GIVEN_UP: Final = {
    Kind.CORE: ("set_isolation_state isolate", "set_allocation_state unusable"),
    Kind.PHB: ("set_isolation_state isolate", "set_allocation_state unusable"),
    Kind.DIMM: ("set_isolation_state isolate",),
    Kind.PCI: ("set_isolation_state isolate",),
}
TAKEN: Final = {
    Kind.CORE: ("set_allocation_state usable", "set_isolation_state unisolate", "set_configured"),
    Kind.PHB: ("set_allocation_state usable", "set_isolation_state unisolate", "set_configured"),
    # drmgr powers the slot on, which starts with its isolation once more.
    Kind.PCI: ("set_isolation_state isolate", "set_isolation_state unisolate", "set_configured"),
}


def ask_kernel(guest: Guest, request: str) -> Completed:
    """Write a request to the kernel, e.g. ``cpu remove index 0x10000001``; it ends when the request is worked off."""
    return guest.run(f"echo '{request}' > /sys/kernel/dlpar")


def await_driven(machine: PseriesMachine, since: int, index: int, steps: int) -> tuple[str, ...]:
    """Return the first ``steps`` things that the guest did to a connector after the cursor, by QEMU's traces.

    The traces come by another pipe than QEMU's answers: hence a wait.
    """

    def state(record: Record) -> str:
        found = drc.traced_state(record, index)
        return found if found is not None and found.startswith(_DRIVEN) and "finalizing" not in found else ""

    return tuple(map(state, machine.await_records(lambda record: bool(state(record)), steps, since, f"steps of {index:#x}")))
