"""The words for what can come of an unplug."""

from __future__ import annotations

from enum import StrEnum


class Kind(StrEnum):
    """A class of hot-pluggable device, by the DRCs it uses."""

    CORE = "core"
    DIMM = "dimm"
    PCI = "pci"
    PHB = "phb"
    NVDIMM = "nvdimm"

    @property
    def by_drmgr(self) -> bool:
        """Whether the guest's part is that of drmgr, in user space. For other kinds the guest's kernel does all."""
        return self in (Kind.PCI, Kind.PHB)


class Outcome(StrEnum):
    """What came of one ``device_del``."""

    REMOVED = "removed"  #: DEVICE_DELETED for this device
    REFUSED = "refused"  #: the guest said no and QEMU told us
    REJECTED = "rejected"  #: QEMU refused the command itself
    PENDING = "pending"  #: silence: nobody told us anything and QEMU still waits
    REVERTED = "reverted"  #: QEMU gave up waiting and cleared the state
    CRASHED = "crashed"  #: QEMU died


class Silence(StrEnum):
    """Why nothing was heard, read from the guest's side."""

    NOT_DELIVERED = "not delivered"  #: whoever has to act in the guest never got the event
    REFUSED_UNSIGNALLED = "refused without signalling"  #: the guest tried, failed and told nobody
    STILL_WORKING = "still working"  #: the guest began and has not ended
    QUEUE_BLOCKED = "queue blocked"  #: the guest has the event and waits for something before it


class Presence(StrEnum):
    """What one view says of a device."""

    PRESENT = "present"
    PARTIAL = "partial"  #: some of a DIMM's blocks or of a core's threads
    ABSENT = "absent"
    UNKNOWN = "unknown"  #: nobody could be asked: no guest, or one that is paused
