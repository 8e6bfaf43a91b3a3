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

    def host_bridges(self) -> dict[int, int | None]:
        """Return the number of each host bridge's PCI domain, by its unit address in the device tree; None where it has no domain.

        Linux takes a PHB's index for its domain, unless a PHB that has gone had that number and the kernel still keeps it.
        """
        script = (
            "cd /proc/device-tree && for node in pci@*; do test -e $node || continue; echo $node; done; "
            'for bus in /sys/class/pci_bus/*:00; do test -e $bus || continue; cd -P $bus/of_node && echo "${PWD##*/} ${bus##*/}"; done'
        )
        bridges: dict[int, int | None] = {}
        for line in self._shell.run(script).check().stdout.splitlines():
            node, _, bus = line.partition(" ")
            bridges[int(node.removeprefix("pci@"), 16)] = int(bus.partition(":")[0], 16) if bus else None
        return bridges

    def devices(self, address: str, subsystem: str) -> list[str]:
        """Return the names of the class devices behind a function: its disks (``block``), its interfaces (``net``), by name.

        :param address: the function's. :param subsystem: a directory of ``/sys/class``; one that the kernel lacks has no devices.
        """
        # One process for all links: another one for each of 60 terminals costs half a second under TCG.
        links = self._shell.run(f"test ! -d /sys/class/{subsystem} || ls -l /sys/class/{subsystem} | grep -F /{address}/").stdout
        return sorted(line.partition(" -> ")[0].rpartition(" ")[2] for line in links.splitlines())

    def secondary_bus(self, address: str) -> int | None:
        """Return the number of the bus behind a bridge; None where the guest knows of no bus there.

        :param address: the bridge's. A guest that booted by VOF knows of none (known defect ``vof-bridge``).
        """
        file = f"{_SYSFS}/{address}/secondary_bus_number"
        answer = self._shell.run(f"test ! -e {file} || cat {file}").check().stdout
        return int(answer) if answer else None
