"""A device of the host that is to be passed through: what must be true of it, as the host's sysfs has it."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Final

from pytest_spapr.errors import ConfigError

_ADDRESS: Final = re.compile(r"[0-9a-f]{4}:[0-9a-f]{2}:[01][0-9a-f]\.[0-7]")
_DRIVER: Final = "vfio-pci"
# The kernel lets a group be used in which such drivers have devices, or none has: they do no DMA of their own.
_HARMLESS: Final = frozenset({_DRIVER, "pci-stub", "pcieport"})


def require_passable(address: str, label: str, *, sysfs: Path = Path("/sys"), dev: Path = Path("/dev")) -> None:
    """Check that a QEMU of this user can have a PCI function of the host.

    :param address: e.g. ``0000:01:00.0``. :param label: how the user wrote it, for the error.
    :param sysfs: :param dev: instead of the host's own, for tests.
    :raises ConfigError: it cannot; the message says what is in the way and what to do.
    """
    if not _ADDRESS.fullmatch(address):
        raise ConfigError(f"{label}: expected the address of a PCI function, e.g. 0000:01:00.0, as `lspci -D` shows it.")
    device = sysfs / "bus/pci/devices" / address
    if not device.exists():
        raise ConfigError(f"{label}: the host has no such PCI function, see `lspci -D`.")
    group = _target(device / "iommu_group")
    if group is None:
        raise ConfigError(
            f"{label}: it is in no IOMMU group: the host has no IOMMU, or its kernel does not use it. Turn it on in the firmware, and "
            "boot the kernel with intel_iommu=on or its like."
        )
    if (driver := _driver(device)) != _DRIVER:
        raise ConfigError(
            f"{label}: its driver on the host is {driver or 'none'}, expected {_DRIVER}. As root: `modprobe {_DRIVER}; "
            f"echo {_DRIVER} > {device}/driver_override; echo {address} > {device}/driver/unbind; "
            f"echo {address} > {sysfs}/bus/pci/drivers_probe`."
        )
    members = (device / "iommu_group/devices").iterdir()
    others = {one.name: _driver(one) for one in members if one.name != address}
    if busy := [
        f"{name} ({driver})" for name, driver in sorted(others.items()) if driver is not None and driver not in _HARMLESS
    ]:
        raise ConfigError(
            f"{label}: its IOMMU group {group} is not viable: the host uses {', '.join(busy)}, from which the device cannot be kept "
            f"apart. Give those to {_DRIVER}, too, or leave them without a driver."
        )
    character = dev / "vfio" / group
    if not os.access(character, os.R_OK | os.W_OK):
        raise ConfigError(f"{label}: {character} cannot be opened by this user. As root: `chown {os.getuid()} {character}`.")


def _target(link: Path) -> str | None:
    return link.resolve().name if link.is_symlink() else None


def _driver(device: Path) -> str | None:
    return _target(device / "driver")
