"""How histories with a guest are made. What takes the guest long (PHBs, boots) comes seldom."""

from __future__ import annotations

from typing import Any, ClassVar

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule

from pytest_spapr.explore.faults import FAULTS
from pytest_spapr.explore.guest_play import GuestPlay
from pytest_spapr.explore.known import Avoid
from pytest_spapr.explore.search import Source
from pytest_spapr.explore.steps import Act
from pytest_spapr.hotplug.outcome import Kind
from pytest_spapr.hotplug.pci import PciBridge

_MOST_OF_A_KIND = 3
_SELDOM = 5


class GuestRules(RuleBasedStateMachine):
    """One history with a guest. Its ``source`` is set in a class of its own, see :func:`guest_rules_for`."""

    source: ClassVar[Source]

    def __init__(self) -> None:
        super().__init__()
        self.play: GuestPlay = self.source.begin()
        self._count = 0

    def teardown(self) -> None:
        self.source.end()

    @rule()
    def plug_core(self) -> None:
        """A core."""
        self._plug("core", Kind.CORE)

    @rule(lmbs=st.integers(1, 2), backend=st.sampled_from(("ram", "memfd")))
    def plug_dimm(self, lmbs: int, backend: str) -> None:
        """A DIMM."""
        self._plug("dimm", Kind.DIMM, lmbs=lmbs, backend=backend)

    @rule(seldom=st.integers(1, _SELDOM))
    def plug_nvdimm(self, seldom: int) -> None:
        """An NVDIMM, which stays."""
        if seldom == 1:
            self._plug("nvdimm", Kind.NVDIMM)

    @rule()
    def plug_card(self) -> None:
        """A PCI device."""
        self._plug("card", Kind.PCI)

    @rule(seldom=st.integers(1, _SELDOM))
    def plug_functions(self, seldom: int) -> None:
        """A multifunction device."""
        if seldom == 1:
            self._plug("functions", Kind.PCI)

    @rule(seldom=st.integers(1, _SELDOM))
    def plug_bridge(self, seldom: int) -> None:
        """A bridge, which stays."""
        if seldom == 1:
            self._plug("bridge", Kind.PCI)

    @rule(seldom=st.integers(1, _SELDOM))
    def plug_phb(self, seldom: int) -> None:
        """A PHB; with several, cards run out of interrupts (known defect ``msi-run-out``)."""
        if seldom == 1 and not self._names(Kind.PHB):
            self._plug("phb", Kind.PHB)

    @precondition(lambda self: self._parents())
    @rule(data=st.data())
    def plug_card_below(self, data: st.DataObject) -> None:
        """A PCI device below a PHB or behind a bridge, which has none yet."""
        self.play.do(Act("plug card", {"name": self._name(Kind.PCI), "below": data.draw(st.sampled_from(self._parents()))}))

    @precondition(lambda self: self.play.devices)
    @rule(data=st.data())
    def unplug(self, data: st.DataObject) -> None:
        """Any device, whatever is the matter with it."""
        self._unplug(data, [name for name in self.play.devices if self._may_go(name)])

    @precondition(lambda self: self._quick())
    @rule(data=st.data())
    def unplug_quick(self, data: st.DataObject) -> None:
        """What the guest's kernel gives back by itself."""
        self._unplug(data, [name for name in self._quick() if self._may_go(name)])

    @precondition(lambda self: self.play.pending())
    @rule(data=st.data())
    def unplug_again(self, data: st.DataObject) -> None:
        """What is pending."""
        self._unplug(data, self.play.pending())

    @precondition(lambda self: self.play.pending())
    @rule(data=st.data())
    def guest_remove(self, data: st.DataObject) -> None:
        """The guest gives back late what QEMU waits for."""
        self.play.do(Act("guest remove", {"device": data.draw(st.sampled_from(self.play.pending()))}))

    @precondition(lambda self: not self.play.paused)
    @rule(fault=st.sampled_from(sorted(FAULTS)))
    def fault_on(self, fault: str) -> None:
        """Something is the matter with the guest."""
        self.play.do(Act("fault on", {"fault": fault}))

    @precondition(lambda self: self.play.faults)
    @rule(data=st.data())
    def fault_off(self, data: st.DataObject) -> None:
        """It no longer is."""
        self.play.do(Act("fault off", {"fault": data.draw(st.sampled_from(sorted(self.play.faults)))}))

    @rule()
    def pause_or_resume(self) -> None:
        """The machine is paused, or goes on."""
        self.play.do(Act("resume" if self.play.paused else "pause"))

    @rule(seldom=st.integers(1, _SELDOM), how=st.sampled_from(("reset", "reboot")))
    def boot_again(self, seldom: int, how: str) -> None:
        """By the machine's button, or by the guest."""
        if seldom == 1 and self._may_boot():
            self.play.do(Act(how))

    @precondition(lambda self: not self.play.paused and not self.play.faults)
    @rule(seldom=st.integers(1, _SELDOM))
    def panic(self, seldom: int) -> None:
        """The guest's kernel can do nothing more."""
        if seldom == 1 and self._may_boot():
            self.play.do(Act("panic"))

    @precondition(lambda self: self.play.panicked)
    @rule()
    def end_of_panic(self) -> None:
        """The machine's button is all that is left."""
        self.play.do(Act("reset"))

    @rule(seldom=st.integers(1, _SELDOM), stored=st.booleans())
    def migrate(self, seldom: int, stored: bool) -> None:
        """The machine moves to another QEMU."""
        if seldom == 1:
            self._migrate(stored)

    @precondition(lambda self: self.play.pending())
    @rule(stored=st.booleans())
    def migrate_pending(self, stored: bool) -> None:
        """It moves while QEMU waits for the guest."""
        self._migrate(stored)

    @rule()
    def nonsense(self) -> None:
        """What QEMU refuses."""
        self.play.do(Act("device_del of nobody"))

    def _plug(self, what: str, kind: Kind, **arguments: Any) -> None:
        if len(self._names(kind)) < _MOST_OF_A_KIND:
            self.play.do(Act(f"plug {what}", {"name": self._name(kind), **arguments}))

    def _may_boot(self) -> bool:
        return not (Avoid.CORE_REMOVAL in self.source.avoid and self.play.pending())

    def _migrate(self, stored: bool) -> None:
        self.play.do(Act("migrate", {"stored": True} if stored else {}))

    def _name(self, kind: Kind) -> str:
        """Return a name that no device has had: it stays the same where steps before it are left out."""
        self._count += 1
        return f"{kind}{self._count}"

    def _unplug(self, data: st.DataObject, names: list[str]) -> None:
        if names:
            self.play.do(Act("unplug", {"device": data.draw(st.sampled_from(names))}))

    def _names(self, *kinds: Kind) -> list[str]:
        return [name for name, held in self.play.devices.items() if held.device.kind in kinds]

    def _quick(self) -> list[str]:
        return self._names(Kind.CORE, Kind.DIMM)

    def _may_go(self, name: str) -> bool:
        return self.play.devices[name].device.kind is not Kind.CORE or Avoid.CORE_REMOVAL not in self.source.avoid

    def _parents(self) -> list[str]:
        taken = {held.parent for held in self.play.devices.values()}
        return [
            name
            for name, held in self.play.devices.items()
            if name not in taken and not held.pending and (held.device.kind is Kind.PHB or isinstance(held.device, PciBridge))
        ]


def guest_rules_for(source: Source) -> type[GuestRules]:
    """Return the rules for a source's histories."""
    return type("GuestHistories", (GuestRules,), {"source": source})
