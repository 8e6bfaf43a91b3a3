"""The state of QEMU's devices, as its migration would write it: the only place where some of it can be read.

QMP's ``xen-save-devices-state`` has nothing to do with Xen but its name: every target of QEMU has had it since 1.1. It writes what a
migration stream has besides RAM, and unlike ``migrate`` it leaves the machine as it was: a machine that runs is paused for the moment
and then goes on (``vm_stop``, ``qemu_save_device_state``, ``vm_start`` in migration/savevm.c).
"""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from pytest_spapr.qemu.qmp import Qmp

# Run states and migration states in which the devices are on their way from one QEMU to another.
_MIGRATING: Final = frozenset({"inmigrate", "finish-migrate", "postmigrate"})
_MOVING: Final = frozenset(
    {"setup", "cancelling", "active", "postcopy-active", "postcopy-paused", "pre-switchover", "device", "wait-unplug"}
)
# A TCE table takes its time, and longer on a busy host.
_SECONDS: Final = 180.0


def device_state(qmp: Qmp) -> bytes | None:
    """Return the state of all devices, 2.4 MB, or None while the machine migrates.

    Costs 0.02 s, for most of which the vCPUs and the virtual clock of a machine that runs stand still. Of a guest that has booted with an
    NVDIMM it is 1 GiB and 7 s: Linux makes its PHB a DMA window for every address that persistent memory may have (enable_ddw: 2^51 bytes
    in pages of 16 MiB), and QEMU's state has that window's whole table of 2^27 TCEs (spapr_tce_table_pre_save). As before every stop, disk
    requests in flight are brought to their end, also those that a throttle keeps back (``bdrv_drain_all``). Nothing else changes. The
    STOP and RESUME that QEMU sends for it are on the timeline with the monitor's traffic, not among the events: nobody stopped the
    machine.

    :raises QmpRefused: QEMU lacks the command, or gives a reason. :raises MachineDied: QEMU ended.
    """
    # Not above: the collection of tests imports this module, and is to be quick.
    from pytest_spapr.qemu.qmp import SAVE_DEVICES

    if qmp.execute("query-status")["status"] in _MIGRATING or qmp.execute("query-migrate").get("status") in _MOVING:
        return None
    memory = os.memfd_create("spapr-device-state")
    try:
        # QEMU opens the file to write only, and a descriptor that it is lent for that must be just so.
        writable = os.open(f"/proc/self/fd/{memory}", os.O_WRONLY)
        try:
            with qmp.lent(writable) as path:
                # live: the default has a machine that is paused give up its disks, for another QEMU to take.
                qmp.execute(SAVE_DEVICES, {"filename": path, "live": False}, seconds=_SECONDS)
        finally:
            os.close(writable)
        # One read ends at 2 GiB.
        with open(memory, "rb", closefd=False) as state:
            state.seek(0)
            return state.read()
    finally:
        # QEMU 5.2 to 7.2 keeps its descriptor while the machine is paused (monitor_fdset_cleanup): let it hold no memory.
        os.ftruncate(memory, 0)
        os.close(memory)


def section(name: str, version: int, fields: bytes) -> re.Pattern[bytes]:
    """Return the pattern of the sections that devices of one type have in the state, for ``finditer``.

    A section does not say how long it is, so that the stream cannot be walked by who does not know all devices. But its header is
    unmistakable, and its number is repeated in its footer: both must be there, with exactly the fields between them.

    :param name: of the type's vmstate. :param fields: the pattern of the fields, with groups of its own.
    :return: with a group ``instance``, 4 bytes: which device.
    """
    # QEMU_VM_SECTION_FULL and QEMU_VM_SECTION_FOOTER of migration/savevm.h.
    header = rb"\x04(?P<section>.{4})" + _named(name) + rb"(?P<instance>.{4})" + re.escape(version.to_bytes(4, "big"))
    return re.compile(header + fields + rb"\x7e(?P=section)", re.DOTALL)


def subsection(name: str, version: int, fields: bytes) -> bytes:
    """Return the pattern of an optional part of a section, to stand among its ``fields``."""
    # QEMU_VM_SUBSECTION.
    return rb"\x05" + _named(name) + re.escape(version.to_bytes(4, "big")) + fields


def _named(name: str) -> bytes:
    return re.escape(bytes([len(name)]) + name.encode())
