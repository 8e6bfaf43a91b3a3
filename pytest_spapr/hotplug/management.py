"""What a management layer concludes of an unplug: libvirt's rules, as a pure function of what QEMU told it.

libvirt sees no guest. It sends ``device_del``, waits for one of two events that names the device by its alias (its ``id`` in QEMU), and has
a word for each end. Read in libvirt 9.0.0 and held against it live (``tests/hotplug/test_management.py``), by hand against 11.3.0 too.

==============================  ====================================================================================================
what QEMU said                  what libvirt makes of it (functions of ``src/qemu/qemu_hotplug.c`` unless another file is named)
==============================  ====================================================================================================
``DEVICE_DELETED``              gone, now or any time later: ``processDeviceDeletedEvent`` (``qemu_driver.c``) takes it out of the domain
``DEVICE_UNPLUG_GUEST_ERROR``   "unplug of device was rejected by the guest" (``qemuDomainWaitForDeviceRemoval``); libvirt 7.10 and later,
                                older ones hear nothing
nothing for 10 s                ``QEMU_UNPLUG_TIMEOUT_PPC64``; 5 s elsewhere (``qemuDomainGetUnplugTimeout``)
an event without ``device``     nothing: ``qemuMonitorJSONHandleDeviceDeleted`` (``qemu_monitor_json.c``) and
                                ``qemuProcessHandleDeviceUnplugErr`` (``qemu_process.c``) drop it
``MEM_UNPLUG_ERROR``            nothing: no libvirt has a handler for it
an error in place of a reply    the call's error, at once (``qemuDomainDeleteDevice``), except where the class is ``DeviceNotFound``: gone
==============================  ====================================================================================================
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from enum import StrEnum
from typing import Any, Final

from pytest_spapr.hotplug.outcome import Kind

#: Seconds that libvirt waits for an event of a pseries machine, of the host's time: a paused machine's wait goes on too.
WAIT: Final = 10.0


class Verdict(StrEnum):
    """What libvirt knows of a request to unplug a device."""

    REMOVED = "removed"  #: the device is gone
    REJECTED = "rejected"  #: the device stays, the request is over and may be made again
    TIMED_OUT = "timed out"  #: the request stands, the device is there, and it may go at any time
    UNKNOWN = "unknown"  #: it still waits; or QEMU ended, and the domain with it, before it told anything


def verdict(events: Iterable[Mapping[str, Any]], elapsed: float, *, alias: str, error_class: str | None = None) -> Verdict:
    """Return what libvirt concludes of one ``device_del``, so many seconds after it.

    What is told later overrides what was told before it: a device that was refused, or whose wait timed out, may still go.

    :param events: QAPI events since the command, whole, in any order; those that say nothing of the device may be among them.
    :param elapsed: seconds since QEMU's reply, of the host's time.
    :param alias: the device's id. :param error_class: of QEMU's reply, where that was an error, e.g. ``GenericError``.
    """
    told = {event["event"] for event in events if event.get("data", {}).get("device") == alias}
    if "DEVICE_DELETED" in told:
        return Verdict.REMOVED
    if "DEVICE_UNPLUG_GUEST_ERROR" in told:
        return Verdict.REJECTED
    if error_class is not None:
        return Verdict.REMOVED if error_class == "DeviceNotFound" else Verdict.REJECTED
    return Verdict.TIMED_OUT if elapsed >= WAIT else Verdict.UNKNOWN


def fails(verdict: Verdict, kind: Kind) -> bool:
    """Return whether libvirt's call that asked for the unplug ends with an error.

    A request that timed out is a success for ``virDomainDetachDeviceFlags`` (``qemuDomainDetachDeviceLive`` returns 0) and an error,
    ``VIR_ERR_OPERATION_TIMEOUT``, for ``virDomainSetVcpusFlags`` (``qemuDomainHotplugDelVcpu``).

    :raises ValueError: the call has not returned.
    """
    if verdict is Verdict.UNKNOWN:
        raise ValueError("libvirt still waits: its call has not returned")
    return verdict is Verdict.REJECTED or (verdict is Verdict.TIMED_OUT and kind is Kind.CORE)
