"""How histories with a guest are made. What takes it long (boots, moves, PHBs) comes seldom, and what is not possible now is not drawn."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
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


class GuestRules(RuleBasedStateMachine):
    """One history with a guest. Its ``source`` is set in a class of its own, see :func:`guest_rules_for`."""

    source: ClassVar[Source]

    def __init__(self) -> None:
        super().__init__()
        self.play: GuestPlay = self.source.begin()
        self._count = 0

    def teardown(self) -> None:
        self.source.end()

    @precondition(lambda self: not self.play.paused)
    @rule()
    def plug_core(self) -> None:
        """A core."""
        self._plug("core", Kind.CORE)

    @precondition(lambda self: not self.play.paused)
    @rule(lmbs=st.integers(1, 2), backend=st.sampled_from(("ram", "memfd")))
    def plug_dimm(self, lmbs: int, backend: str) -> None:
        """A DIMM."""
        self._plug("dimm", Kind.DIMM, lmbs=lmbs, backend=backend)

    @precondition(lambda self: not self.play.paused)
    @rule()
    def plug_card(self) -> None:
        """A PCI device."""
        self._plug("card", Kind.PCI)

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

    @precondition(lambda self: not self.play.paused and not self.play.pending())
    @rule(fault=st.sampled_from(sorted(FAULTS)))
    def fault_on(self, fault: str) -> None:
        """Something is the matter with the guest."""
        self.play.do(Act("fault on", {"fault": fault}))

    @precondition(lambda self: self.play.faults)
    @rule(data=st.data())
    def fault_off(self, data: st.DataObject) -> None:
        """It no longer is."""
        self.play.do(Act("fault off", {"fault": data.draw(st.sampled_from(sorted(self.play.faults)))}))

    @precondition(lambda self: self.play.devices and not (self.play.paused or self.play.faults or self.play.pending()))
    @rule()
    def pause(self) -> None:
        """The machine is paused."""
        self.play.do(Act("pause"))

    @precondition(lambda self: self.play.paused and not self.play.panicked)
    @rule()
    def resume(self) -> None:
        """It goes on."""
        self.play.do(Act("resume"))

    @precondition(lambda self: self.play.panicked)
    @rule()
    def end_of_panic(self) -> None:
        """The machine's button is all that is left."""
        self.play.do(Act("reset"))

    @precondition(lambda self: self.play.pending() and not self.play.panicked)
    @rule(stored=st.booleans())
    def migrate_pending(self, stored: bool) -> None:
        """The machine moves to another QEMU while this one waits for the guest."""
        self.play.do(_move(stored))

    @rule(data=st.data())
    def rare(self, data: st.DataObject) -> None:
        """What costs much, or changes much, and is not to crowd out the rest."""
        data.draw(st.sampled_from(self._rare()))()

    def _rare(self) -> list[Callable[[], None]]:
        """Return what such things can be done now."""
        play = self.play
        acts = [Act("device_del of nobody")]
        plugs: list[tuple[str, Kind]] = []
        if not play.panicked:
            acts += [_move(False), _move(True)]
        if not play.paused:
            plugs = [("nvdimm", Kind.NVDIMM), ("functions", Kind.PCI), ("bridge", Kind.PCI)]
            # With several, cards run out of interrupts (known defect ``msi-run-out``).
            plugs += [] if self._names(Kind.PHB) else [("phb", Kind.PHB)]
            if not play.faults and not (Avoid.CORE_REMOVAL in self.source.avoid and play.pending()):
                acts += [Act("reset"), Act("reboot"), Act("panic")]
        return [*(partial(play.do, act) for act in acts), *(partial(self._plug, what, kind) for what, kind in plugs)]

    def _plug(self, what: str, kind: Kind, **arguments: Any) -> None:
        if len(self._names(kind)) < _MOST_OF_A_KIND:
            self.play.do(Act(f"plug {what}", {"name": self._name(kind), **arguments}))

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


def _move(stored: bool) -> Act:
    return Act("migrate", {"stored": True} if stored else {})


def guest_rules_for(source: Source) -> type[GuestRules]:
    """Return the rules for a source's histories."""
    return type("GuestHistories", (GuestRules,), {"source": source})
