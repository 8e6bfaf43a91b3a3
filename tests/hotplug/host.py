"""What the host has to give to QEMU."""

from __future__ import annotations

import re
from pathlib import Path

import pytest


def huge_pages() -> tuple[int, int]:
    """Return how many huge pages of the host's default size can be had now, and that size in bytes; skip where there are none at all."""
    told = dict(re.findall(r"^(\w+):\s+(\d+)", Path("/proc/meminfo").read_text(encoding="ascii"), re.MULTILINE))
    if "Hugepagesize" not in told:
        pytest.skip("this host's kernel has no huge pages")
    more = int(Path("/proc/sys/vm/nr_overcommit_hugepages").read_text(encoding="ascii"))
    return int(told["HugePages_Free"]) - int(told["HugePages_Rsvd"]) + more, int(told["Hugepagesize"]) << 10


def require_huge_pages(mebibytes: int) -> None:
    """Skip the test where the host cannot give so much memory in huge pages."""
    free, size = huge_pages()
    if free * size < mebibytes << 20:
        pytest.skip(
            f"the host has {free} huge pages of {size} bytes free, and {mebibytes} MiB are needed (/proc/sys/vm/nr_hugepages)"
        )
