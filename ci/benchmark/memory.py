"""What memory a clone takes that it shares with nobody."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

_HEAD: Final = re.compile(r"^[0-9a-f]+-[0-9a-f]+ \S+ \S+ \S+ \d+\s*(?P<path>.*)$")
_FIELD: Final = re.compile(r"^(?P<name>\w+):\s+(?P<kib>\d+) kB$")
_KIB: Final = 1024
_TEMPLATE_RAM: Final = re.compile(r"/templates/[^/]+/ram$")
#: Bytes that a clone is taken to need at most, and what is left to everybody else.
_EACH, _REST = 200_000_000, 1_000_000_000


def private(pid: int) -> int:
    """Return the bytes of a process that nobody else has, from ``/proc/PID/smaps``.

    These are the private pages of all its mappings, clean and dirty (QEMU's heap, translated code, device memory), and what of them
    is swapped out. Of the template's memory only the pages count that the clone has a copy of its own of (``Anonymous``): those
    that it merely reads are the template's, in the page cache, also while it is the only one who reads them.
    """
    return private_bytes(Path(f"/proc/{pid}/smaps").read_text(encoding="utf-8", errors="replace"))


def private_bytes(smaps: str) -> int:
    """Return the same of the text of a ``smaps`` file."""
    total = 0
    for path, fields in _mappings(smaps):
        if _TEMPLATE_RAM.search(path):
            total += fields.get("Anonymous", 0)
        else:
            total += fields.get("Private_Clean", 0) + fields.get("Private_Dirty", 0)
        total += fields.get("Swap", 0) + fields.get("Private_Hugetlb", 0)
    return total * _KIB


def too_little_for(count: int) -> str | None:
    """Return why this host cannot run so many clones at the same time, or None if it can."""
    available = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
        if line.startswith("MemAvailable:"):
            available = int(line.split()[1]) * _KIB
    needed = count * _EACH + _REST
    if available >= needed:
        return None
    return f"{count} clones need {needed / 1e9:.1f} GB of memory, {available / 1e9:.1f} GB are available"


def _mappings(smaps: str) -> Iterator[tuple[str, dict[str, int]]]:
    """Yield the path, if any, and the fields in KiB of each mapping."""
    path, fields = "", dict[str, int]()
    for line in smaps.splitlines():
        if head := _HEAD.match(line):
            if fields:
                yield path, fields
            path, fields = head["path"], {}
        elif found := _FIELD.match(line):
            fields[found["name"]] = int(found["kib"])
    if fields:
        yield path, fields
