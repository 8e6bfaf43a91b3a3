"""The generations of QEMU and Linux that contract rows tell apart, unpatched and patched."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from pytest_spapr.hotplug.rows import Row, version
from pytest_spapr.qemu.behaviour import by_version

_TIMER: Final = frozenset({"unplug-timer", "repeat-core-rejected"})


def release(major: int, minor: int) -> frozenset[str]:
    """Return what a probe finds in an unpatched release, as far as rows ask for it: its QAPI events and what it does."""
    number = (major, minor, 0)
    events = {"DEVICE_DELETED"}
    if number >= (6, 2, 0):
        events.add("DEVICE_UNPLUG_GUEST_ERROR")
    if number < (9, 1, 0):
        # 0f910b8724 took it away; before, every schema has it, for x86.
        events.add("MEM_UNPLUG_ERROR")
    return by_version(number) | events


_RELEASES: Final = {
    f"{major}.{minor}": release(major, minor)
    for major, minor in ((5, 2), (6, 0), (6, 1), (6, 2), (7, 2), (9, 1), (10, 0), (11, 1), (99, 0))
}

#: Features by name. 99.0 is a QEMU that nobody has seen yet; ``+timer`` has the time limit of 2021, ``+once`` tells a refusal once.
QEMUS: Final = {
    **_RELEASES,
    "5.2+timer": _RELEASES["5.2"] | _TIMER,
    "11.1+timer": _RELEASES["11.1"] - {"repeat-core-announced"} | _TIMER,
    "7.2+once": _RELEASES["7.2"] - {"dimm-refusal-doubled"},
    "11.1+once": _RELEASES["11.1"] - {"dimm-refusal-doubled"},
}

#: Kernel releases: before and after those that signal refusals, what Debian has, and one that nobody has seen yet.
LINUXES: Final = ("6.1.0-50-powerpc64le", "5.10.223", "5.13.19", "6.12.107+deb13-powerpc64le", "7.2.13", "99.0")

# What can be run first, so that a row is shown with that where it is possible.
_PREFERRED: Final = ("11.1", "7.2", "5.2", "5.2+timer", "6.0", "6.1", "6.2", "9.1", "10.0", *QEMUS)


def of(row: Row, qemus: Sequence[str] = _PREFERRED) -> tuple[str, str] | None:
    """Return one of these QEMUs and a Linux that a row speaks of, None if there is none."""
    for qemu in qemus:
        for linux in LINUXES:
            numbers = version(qemu.partition("+")[0])
            if row.fits(QEMUS[qemu], version(linux), numbers):
                return qemu, linux
    return None
