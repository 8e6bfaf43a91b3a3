"""What devices have in common whose hot-plug is drmgr's work in the guest: PCI functions and PCI host bridges."""

from __future__ import annotations

from pytest_spapr.guest.services import DRMGR_BEGAN, DRMGR_ENDED
from pytest_spapr.hotplug.device import Device
from pytest_spapr.hotplug.evidence import Clue
from pytest_spapr.timeline import Lane, Record


class DrmgrDevice(Device):
    """A device with one DRC that rtas_errd starts a drmgr for."""

    def plug_clue(self, record: Record, seen: list[str]) -> Clue | None:
        return self._drmgr_clue(record, seen)

    def unplug_clue(self, record: Record) -> Clue | None:
        return self._drmgr_clue(record, [])

    def _drmgr_clue(self, record: Record, seen: list[str]) -> Clue | None:
        if record.lane is not Lane.SERVICE or f"{self.drcs[0]:#x}" not in record.text:
            return None
        if DRMGR_BEGAN.match(record.text):
            return Clue.BEGAN
        if ended := DRMGR_ENDED.match(record.text):
            seen.append(record.text)
            return Clue.DONE if ended["status"] == "0" else Clue.FAILED
        return None
