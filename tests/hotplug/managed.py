"""A device that a real libvirt plugs and unplugs: what libvirt makes of it, and what we make of the events that it heard."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

import pytest

from pytest_spapr import Deadline, Kind, Lane, Record, Verdict
from pytest_spapr.guest.kernel_log import CORE_ADDED, LMB_ADDED, says
from pytest_spapr.guest.memory import LMB
from pytest_spapr.guest.services import DRMGR_ENDED
from pytest_spapr.hotplug.defects import KNOWN_DEFECTS
from pytest_spapr.hotplug.drc import LMB_TYPE
from pytest_spapr.hotplug.management import verdict
from pytest_spapr.libvirt.daemon import Answer
from pytest_spapr.libvirt.domain import Domain

LMBS: Final = 2
_SECONDS: Final = 60.0
_SHOWN: Final = 40

_DIMM: Final = f"<memory model='dimm'><target><size unit='B'>{LMBS * LMB}</size><node>0</node></target></memory>"
_RNG: Final = "<rng model='virtio'><backend model='random'>/dev/urandom</backend></rng>"
_REFUSED_BY_QEMU: Final = "unable to execute QEMU command 'device_del'"


@dataclass(frozen=True, slots=True)
class Call:
    """One request to libvirt to unplug a device. :ivar since: the timeline's cursor before it."""

    since: int
    answer: Answer


@contextmanager
def plugged(domain: Domain, kind: Kind) -> Iterator[Managed]:
    """Have libvirt plug a device for the ``with`` block. A QEMU that is known to die of a core's removal is not held against anybody."""
    device = Managed(domain, kind)
    try:
        yield device
    except Exception as error:
        defect = KNOWN_DEFECTS["tcg-core-removal-heap"]
        if kind is Kind.CORE and domain.has_died() and defect.applies(domain.build, domain.spec.accelerator, None):
            pytest.xfail(f"known defect {defect.id}: {defect.summary}")
        error.add_note("\n".join(map(str, domain.timeline.since()[-_SHOWN:])))
        raise


class Managed:
    """A device of a domain, which the guest has taken. :ivar alias: its id in QEMU."""

    def __init__(self, domain: Domain, kind: Kind) -> None:
        self.domain = domain
        self.kind = kind
        before = self._in_guest()
        since = domain.timeline.mark()
        if kind is Kind.CORE:
            domain.virsh("setvcpus", "2", "--live").check()
            self.alias = "vcpu1"
        else:
            described = domain.device_file(_DIMM if kind is Kind.DIMM else _RNG)
            domain.virsh("attach-device", described, "--live").check()
            self.alias = str(self._elements()[-1].findall("alias")[-1].get("name"))
        domain.timeline.wait(self._plugged, since=since, deadline=Deadline(_SECONDS), what=f"the guest to take {self.alias}")
        self._parts = self._in_guest() - before
        assert len(self._parts) == (LMBS if kind is Kind.DIMM else 1)

    def detach(self) -> Call:
        """Ask libvirt to unplug it, as a management layer does: the call returns when libvirt has done with its wait."""
        since = self.domain.timeline.mark()
        if self.kind is Kind.CORE:
            answer = self.domain.virsh("setvcpus", "1", "--live")
        else:
            described = self.domain.device_file(ET.tostring(self._element(), encoding="unicode"))
            answer = self.domain.virsh("detach-device", described, "--live")
        # Events come before the reply of a command that was sent after them.
        self.domain.qmp.execute("query-status")
        return Call(since, answer)

    def libvirt_concludes(self, call: Call) -> Verdict:
        """Return what libvirt itself made of a request: by its answer, and by whether it still has the device."""
        if not self.held:
            return Verdict.REMOVED
        told = call.answer.text
        if "rejected by the guest" in told or _REFUSED_BY_QEMU in told:
            return Verdict.REJECTED
        assert not call.answer.failed or "timed out" in told, told
        return Verdict.TIMED_OUT

    def we_conclude(self, call: Call) -> Verdict:
        """Return what our rules make of the events that our own monitor has heard since."""
        events = [record.data for record in self.domain.timeline.since(call.since, Lane.EVENT) if record.data is not None]
        # Only libvirt's own monitor hears the reply.
        error_class = "GenericError" if _REFUSED_BY_QEMU in call.answer.text else None
        return verdict(events, call.answer.seconds, alias=self.alias, error_class=error_class)

    @property
    def held(self) -> bool:
        """Whether libvirt says that the domain has it."""
        return bool(self._elements())

    @property
    def configured(self) -> bool:
        """Whether the guest has all of it."""
        return self._parts <= self._in_guest()

    @property
    def gone(self) -> bool:
        """Whether the guest has nothing of it."""
        return not self._parts & self._in_guest()

    @contextmanager
    def refused(self) -> Iterator[None]:
        """Have the guest refuse to give it up, and say so, inside the ``with`` block."""
        guest = self.domain.guest
        if self.kind is Kind.CORE:
            with guest.cpus.offline(0):
                yield
        else:
            with guest.memory.offline_refused(after=[min(map(int, self._parts))]):
                yield

    @contextmanager
    def silenced(self) -> Iterator[None]:
        """Have the guest say nothing inside the ``with`` block, for the reason that is typical for the kind, and go on after it."""
        guest = self.domain.guest
        if self.kind is Kind.CORE:
            self.domain.virsh("suspend").check()
            yield
            self.domain.virsh("resume").check()
        elif self.kind is Kind.DIMM:
            with guest.memory.offline_refused():
                yield
            # It has done with the event: nobody but the guest itself can take the memory now.
            for block in sorted(self._parts):
                guest.memory.remove(LMB_TYPE + int(block))
        else:
            with guest.rtas_errd.killed():
                yield

    def await_removal(self, call: Call) -> None:
        """Wait until libvirt has taken it out of the domain; of a core it tells nobody."""
        deadline = Deadline(_SECONDS)
        if self.kind is not Kind.CORE:
            self.domain.await_event("device-removed", self.alias, call.since, deadline)
        while self.held:
            deadline.require(f"libvirt to let go of {self.alias}")

    def _plugged(self, record: Record) -> bool | None:
        if self.kind is Kind.PCI:
            ended = DRMGR_ENDED.match(record.text) if record.lane is Lane.SERVICE else None
            return True if ended and ended["status"] == "0" else None
        pattern: re.Pattern[str] = CORE_ADDED if self.kind is Kind.CORE else LMB_ADDED
        return True if says(record, pattern) else None

    def _in_guest(self) -> frozenset[str]:
        """Return the names that the guest has for what is of this kind, once its kernel has done with its hotplug work."""
        guest = self.domain.guest
        if self.kind is not Kind.PCI:
            guest.settle()
        if self.kind is Kind.CORE:
            return frozenset(map(str, guest.cpus.online()))
        if self.kind is Kind.DIMM:
            return frozenset(str(block) for block, state in guest.memory.blocks().items() if state == "online")
        return frozenset(guest.pci.functions())

    def _elements(self) -> list[ET.Element]:
        definition = self.domain.definition()
        if self.kind is Kind.CORE:
            return definition.findall("./vcpus/vcpu[@id='1'][@enabled='yes']")
        return definition.findall(f"./devices/{'memory' if self.kind is Kind.DIMM else 'rng'}")

    def _element(self) -> ET.Element:
        return self._elements()[-1]
