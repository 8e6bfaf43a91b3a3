"""The guest's CPUs, through sysfs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from pytest_spapr.errors import GuestError
from pytest_spapr.guest.shell import Shell, first_lines, parse_ranges

_SYSFS = "/sys/devices/system/cpu"


class GuestCpus:
    """CPUs as the guest's kernel numbers them. Each call is one guest command, 0.01 s under TCG."""

    def __init__(self, shell: Shell) -> None:
        self._shell = shell

    def online(self) -> frozenset[int]:
        """Return the CPUs that run."""
        return self._ranges("online")

    def present(self) -> frozenset[int]:
        """Return the CPUs that exist, online or not."""
        return self._ranges("present")

    def by_hardware_id(self) -> dict[int, int]:
        """Return, for each present CPU, its hardware id (the low bits of its core's DRC index) to its number."""
        found = first_lines(self._shell, f"{_SYSFS}/present {_SYSFS}/cpu[0-9]*/physical_id")
        # A CPU that is merely possible has a physical_id too, often that of CPU 0.
        present = parse_ranges(found.pop(f"{_SYSFS}/present"))
        numbers = {int(path.split("/cpu")[-1].split("/")[0]): int(hardware) for path, hardware in found.items()}
        return {hardware: cpu for cpu, hardware in numbers.items() if cpu in present}

    def _ranges(self, name: str) -> frozenset[int]:
        path = f"{_SYSFS}/{name}"
        return parse_ranges(first_lines(self._shell, path)[path])

    def set_online(self, cpu: int, online: bool) -> None:
        """Bring one CPU online or take it offline.

        :raises CommandFailed: the kernel refused, e.g. for the last online CPU.
        """
        self._shell.run(f"echo {int(online)} > {_SYSFS}/cpu{cpu}/online").check()

    @contextmanager
    def offline(self, *cpus: int) -> Iterator[None]:
        """Keep these CPUs offline inside the ``with`` block, and bring them back after it if they still exist.

        :raises GuestError: the CPUs are still online afterwards.
        """
        taken: list[int] = []
        try:
            for cpu in cpus:
                self.set_online(cpu, False)
                taken.append(cpu)
            if still := self.online() & set(cpus):
                raise GuestError(f"CPUs {sorted(still)} are online although the guest accepted to take them offline")
            yield
        finally:
            # sysfs keeps the directory of a CPU that was removed.
            if taken and self._shell.usable:
                for cpu in self.present().intersection(taken):
                    self.set_online(cpu, True)

    def remove(self, drc_index: int) -> None:
        """Have the guest remove one core by itself, through ``/sys/kernel/dlpar``: what a guest does that comes to it late.

        :param drc_index: the core's DRC index, e.g. 0x10000001.
        :raises CommandFailed: the kernel refused.
        """
        self._shell.run(f"echo 'cpu remove index {drc_index:#x}' > /sys/kernel/dlpar").check()
