"""The guest's memory blocks, through sysfs, and the ways to make it refuse to give one back."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Final

from pytest_spapr.guest.shell import Shell, first_lines

_SYSFS = "/sys/devices/system/memory"
# notifier-error-inject: the kernel's own fault injector for memory hotplug, CONFIG_MEMORY_NOTIFIER_ERROR_INJECT=m in Debian.
_INJECTION = "/sys/kernel/debug/notifier-error-inject/memory/actions/MEM_GOING_OFFLINE/error"
_ENOMEM = -12
#: Bytes of an LMB, and of a memory block of a pseries guest.
LMB: Final = 256 << 20


class GuestMemory:
    """Memory blocks (one LMB each, 256 MiB) as the guest's kernel numbers them: by address. Each call is one guest command."""

    def __init__(self, shell: Shell) -> None:
        self._shell = shell

    def blocks(self) -> dict[int, str]:
        """Return each block's state: ``online``, ``offline`` or ``going-offline``."""
        found = first_lines(self._shell, f"{_SYSFS}/memory[0-9]*/state")
        return {int(path.split("/memory")[-1].split("/")[0]): state for path, state in found.items()}

    def total(self) -> int:
        """Return ``MemTotal`` in bytes."""
        return self.info("MemTotal")

    def info(self, name: str) -> int:
        """Return a line of ``/proc/meminfo``: in bytes if it says kB, else the number."""
        for line in self._shell.read("/proc/meminfo").splitlines():
            if line.startswith(f"{name}:"):
                words = line.split()
                return int(words[1]) * (1024 if words[2:] == ["kB"] else 1)
        raise ValueError(f"no {name} in /proc/meminfo")

    def nodes(self) -> dict[int, int]:
        """Return the NUMA node of each block."""
        found = self._shell.run("echo /sys/devices/system/node/node*/memory[0-9]*").check().stdout.split()
        places = (path.split("/") for path in found if not path.endswith("*"))
        return {int(place[-1].removeprefix("memory")): int(place[-2].removeprefix("node")) for place in places}

    def zones(self) -> dict[int, str]:
        """Return the zone of each block that is online: ``Movable`` or the kernel's, ``Normal``."""
        found = first_lines(self._shell, f"{_SYSFS}/memory[0-9]*/valid_zones")
        return {int(path.split("/memory")[-1].split("/")[0]): zone for path, zone in found.items()}

    def give_to_kernel(self, block: int) -> None:
        """Move an online block from the zone Movable to the zone Normal, where the kernel has memory of its own, too.

        :raises CommandFailed: the kernel refused to take it offline.
        """
        self._shell.run(
            f"echo offline > {_SYSFS}/memory{block}/state && echo online_kernel > {_SYSFS}/memory{block}/state"
        ).check()

    def persistent(self) -> frozenset[int]:
        """Return the DRC indexes of the persistent memory in the device tree."""
        # QEMU 5.2 leaves the vendor's prefix out of the first name.
        found = self._shell.run("echo /proc/device-tree/*persistent-memory/ibm,pmemory@*").check().stdout.split()
        return frozenset(int(node.rpartition("@")[2], 16) for node in found if not node.endswith("*"))

    def set_online(self, block: int, online: bool) -> None:
        """Bring one block online or take it offline.

        :raises CommandFailed: the kernel refused.
        """
        self._shell.run(f"echo {int(online)} > {_SYSFS}/memory{block}/online").check()

    @contextmanager
    def offline_refused(self, *, after: Iterable[int] = ()) -> Iterator[None]:
        """Make the kernel refuse to take any further memory block offline inside the ``with`` block (error injection, -ENOMEM).

        :param after: blocks to take offline beforehand. They need no notifier any more, so a DIMM's removal fails at the first
            block that is not among them: name the DIMM's first blocks to make a *later* LMB fail, or none to make the first fail.
            Blocks that exist and are offline at the end are brought back.
        :raises CommandFailed: the guest has no injector, or refused to take a block of ``after`` offline.
        """
        prepared = tuple(after)
        for block in prepared:
            self.set_online(block, False)
        self._shell.run(f"echo {_ENOMEM} > {_INJECTION}").check()
        try:
            yield
        finally:
            if self._shell.usable:
                self._shell.run(f"echo 0 > {_INJECTION}").check()
                for block in prepared:
                    path = f"{_SYSFS}/memory{block}"
                    self._shell.run(f"! grep -sq offline {path}/state || echo 1 > {path}/online").check()

    def remove(self, drc_index: int) -> None:
        """Have the guest remove one LMB by itself, through ``/sys/kernel/dlpar``: the way out of a DIMM that is pending for ever.

        :param drc_index: the LMB's DRC index, e.g. 0x80000004.
        :raises CommandFailed: the kernel refused.
        """
        self._shell.run(f"echo 'memory remove index {drc_index:#x}' > /sys/kernel/dlpar").check()
