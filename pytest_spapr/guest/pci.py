"""The guest's PCI devices, through sysfs."""

from __future__ import annotations

from dataclasses import dataclass

from pytest_spapr.guest.shell import Shell

_SYSFS = "/sys/bus/pci/devices"


@dataclass(frozen=True, slots=True)
class PciFunction:
    """A PCI function that the guest sees.

    :ivar address: e.g. ``0000:00:03.0``. :ivar ids: vendor and device, e.g. ``1af4:1005``. :ivar driver: name, or None if unbound.
    """

    address: str
    ids: str
    driver: str | None


class GuestPci:
    """PCI functions as the guest sees them. Each call is one guest command."""

    def __init__(self, shell: Shell) -> None:
        self._shell = shell

    def functions(self) -> dict[str, PciFunction]:
        """Return every function by its address."""
        script = (
            f'cd {_SYSFS} && for d in *; do test -e "$d" || continue; read v < $d/vendor; read i < $d/device; '
            "l=$(readlink $d/driver); echo $d ${v#0x}:${i#0x} ${l##*/}; done"
        )
        functions = {}
        for line in self._shell.run(script).check().stdout.splitlines():
            address, ids, *driver = line.split()
            functions[address] = PciFunction(address, ids, driver[0] if driver else None)
        return functions
