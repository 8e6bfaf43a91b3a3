"""Guests with udev, which names network cards anew and reads from disks that were written to."""

from __future__ import annotations

from pytest_spapr import Guest


def await_udev(guest: Guest) -> None:
    """Return when udev has done what the kernel has told it of so far; at once in a guest without it."""
    guest.run("! command -v udevadm || udevadm settle").check()
