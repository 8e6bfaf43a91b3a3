"""Which machines can have a template, and which template is whose."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Final

from pytest_spapr.images.store import DISK, INITRAMFS, VMLINUX, GuestImage
from pytest_spapr.qemu.argv import DISCARDING, Channels, MachineSpec, argv
from pytest_spapr.qemu.build import QemuBuild

#: Raise it when a template made by an older version of this package would not do any more.
FORMAT: Final = 2

_LENGTH: Final = 20
_NOWHERE: Final = Channels(*(0 for _ in Channels._fields))
# What has no state on the host: such devices come out of the migration stream whole.
_SELF_CONTAINED: Final = ("-device", "-global", "-numa", "-append")
_OUTSIDE: Final = ("vfio", "vhost", "drive=", "chardev=", "netdev=", "memdev=", "host", "path=", "file=")
# Has "host" in its name only.
_HOST_BRIDGE: Final = "spapr-pci-host-bridge"


def unsuitable(spec: MachineSpec) -> str | None:
    """Return why machines of this kind must be booted each, or None if they can be cloned.

    Arguments of the test's own may name things on the host (a disk, a device that is passed through) which a clone would share with
    its template, or which went on changing since.
    """
    words = list(spec.qemu_args)
    while words:
        option, *words = words
        if option not in _SELF_CONTAINED or not words:
            return f"qemu_args has {option}, which may depend on the host"
        value = words.pop(0)
        if found := next((part for part in _OUTSIDE if part in value.removeprefix(_HOST_BRIDGE)), None):
            return f"qemu_args has {option} {value}, whose {found.rstrip('=')} is outside of the machine"
        if any(part in value for part in DISCARDING):
            return f"qemu_args has {option} {value}, which would take pages out of the template's memory"
    return None


def facts(build: QemuBuild, spec: MachineSpec, image: GuestImage) -> dict[str, Any]:
    """Return all that a template depends on: it is good for a machine with the same facts and for no other."""
    files = image.manifest["files"]
    here = replace(image, kernel=Path(VMLINUX), initramfs=Path(INITRAMFS), disk=image.disk and Path(DISK))
    found: dict[str, Any] = {
        "format": FORMAT,
        "qemu": build.sha256,
        "kernel": files[VMLINUX]["sha256"],
        "initramfs": files[INITRAMFS]["sha256"],
        "memory": spec.memory,
        "arguments": argv(replace(build, command=()), spec, here, _NOWHERE),
    }
    if image.disk is not None:
        found["disk"] = files[DISK]["sha256"]
    if spec.accelerator != "tcg":
        # What KVM gives the guest depends on the host's kernel and processor.
        host = os.uname()
        found["host"] = [host.machine, host.nodename, host.release]
    return found


def key_of(found: dict[str, Any]) -> str:
    """Return the name of the template with these facts."""
    return hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()[:_LENGTH]


def shape_text(spec: MachineSpec) -> str:
    """Return what is special about a machine, in a few words, e.g. ``cpus=2 max_cpus=4``; ``default`` if nothing is."""
    usual = asdict(MachineSpec())
    shown = {name: value for name, value in asdict(spec).items() if value != usual[name]}
    words = (f"{name}={' '.join(value) if isinstance(value, tuple) else value}" for name, value in shown.items())
    return " ".join(words) or "default"
