"""The guest kernel's log as it reaches the host: raw ``/dev/kmsg`` records, one a line, and the lines that hot-unplug evidence rests on.

The ``pr_debug`` lines are switched on by ``dyndbg`` on the kernel command line (``qemu.argv.DEFAULT_KERNEL_ARGS``). The texts are
the same in Linux 5.10 to 7.2, arch/powerpc/platforms/pseries/hotplug-cpu.c, hotplug-memory.c, pmem.c and arch/powerpc/kernel/rtasd.c.
"""

from __future__ import annotations

import re
from typing import Final

from pytest_spapr.timeline import Lane, Record

_KMSG = re.compile(r"^(?P<priority>\d+),(?P<seq>\d+),(?P<usec>\d+),[^;]*;(?P<text>.*)$")

CORE_ADDED: Final = re.compile(r"Successfully added CPU .*drc index: (?P<drc>[0-9a-f]+)")
CORE_ADD_FAILED: Final = re.compile(r"pseries-hotplug-cpu: (Failed|Cannot|CPU with drc index)")
CORE_REMOVAL_BEGAN: Final = re.compile(r"Attempting to remove CPU .*drc index: (?P<drc>[0-9a-f]+)")
CORE_REMOVAL_FAILED: Final = re.compile(r"pseries-hotplug-cpu: (Failed|Cannot)")
LMB_ADDED: Final = re.compile(r"Memory at [0-9a-f]+ \(drc index (?P<drc>[0-9a-f]+)\) was hot-added")
MEMORY_ADD_FAILED: Final = re.compile(r"Memory (indexed-count|hot|index)-?add failed")
MEMORY_REMOVAL_BEGAN: Final = re.compile(r"Attempting to hot-remove .*LMB")
MEMORY_REMOVAL_FAILED: Final = re.compile(r"Memory (indexed-count-remove|hot-remove) failed")
PMEM_ADDED: Final = re.compile(r"pseries-pmem: Successfully added .*drc index: (?P<drc>[0-9a-f]+)")
PMEM_ADD_FAILED: Final = re.compile(r"pseries-pmem: (Failed|configure-connector failed)")
#: Any hotplug event that the kernel hands to user space, i.e. that of a PCI slot or a PHB (log_error).
HOTPLUG_EVENT: Final = re.compile(r"^RTAS: event: \d+, Type: Hotplug Event")


def kmsg_text(line: str) -> str:
    """Return the message of a raw ``/dev/kmsg`` line; a line that is none is returned as it is."""
    match = _KMSG.match(line)
    return match["text"] if match else line


def says(record: Record, pattern: re.Pattern[str]) -> re.Match[str] | None:
    """Return the match if this is a kernel message that the pattern occurs in."""
    return pattern.search(record.text) if record.lane is Lane.KERNEL else None
