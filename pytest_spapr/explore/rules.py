"""How histories are made: rules that hypothesis chooses from, with what the model says is there to be drawn from.

Each rule plays one step or a short, sensible row of them. Since all draws depend on the model only, one seed gives one row of histories.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from typing import Any, ClassVar

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule

from pytest_spapr.explore.history import History
from pytest_spapr.explore.known import Avoid
from pytest_spapr.explore.model import (
    BRIDGE,
    DIMM,
    FUNCTIONS,
    LABEL,
    LMB,
    NVDIMM,
    PCI_BUS,
    PERIPHERAL,
    PHB,
    SLOTS,
    Model,
    Modelled,
)
from pytest_spapr.explore.pairs import Pair, way
from pytest_spapr.explore.search import Source
from pytest_spapr.explore.steps import Aside, Call, Command, Move, OddCall, Step, TakeEvents
from pytest_spapr.hotplug.drc_model import DrcClass, State, Transition, class_of
from pytest_spapr.hotplug.outcome import Kind

#: Few, so that histories meet the same place again.
_CORES, _PCI_SLOTS, _PHB_INDEXES, _MOST_LMBS = 6, (2, 3, SLOTS - 1), 3, 3
_TAKE = (Transition.SET_USABLE, Transition.UNISOLATE, Transition.CONFIGURE)
_GIVE = (Transition.ISOLATE, Transition.SET_UNUSABLE)
_REFUSE = (Transition.UNISOLATE, Transition.CONFIGURE)
_PHYSICAL = (Transition.UNISOLATE, Transition.ISOLATE, Transition.CONFIGURE)
_LOGICAL = (*_PHYSICAL, Transition.SET_USABLE, Transition.SET_UNUSABLE)


class Rules(RuleBasedStateMachine):
    """One history, made by hypothesis. Its ``source`` is set in a class of its own, see :func:`rules_for`."""

    source: ClassVar[Source]

    def __init__(self) -> None:
        super().__init__()
        self.history: History = self.source.begin()
        self._ids = 0
        # The indexes that ever had a PHB.
        self._phbs: set[int] = set()

    @property
    def model(self) -> Model:
        return self.history.model

    def teardown(self) -> None:
        self.source.end()

    @rule(core=st.integers(1, _CORES))
    def plug_core(self, core: int) -> None:
        """A core, or what QEMU refuses because it is there."""
        self._plug("core", self.model.facts.core_type, **{"core-id": core})

    @rule(lmbs=st.integers(1, _MOST_LMBS), backend=st.sampled_from(("ram", "ram", "memfd")))
    def plug_dimm(self, lmbs: int, backend: str) -> None:
        """A DIMM of several LMBs and backends."""
        self._plug_memory("dimm", DIMM, lmbs * LMB, backend)

    @rule()
    def plug_nvdimm(self) -> None:
        """An NVDIMM, which never goes."""
        more = {"label-size": LABEL, "uuid": str(uuid.UUID(int=self._ids + 1))}
        self._plug_memory("nvdimm", NVDIMM, LMB + LABEL, "ram", **more)

    @rule(data=st.data())
    def plug_card(self, data: st.DataObject) -> None:
        """A PCI function on any bus, also where there is one."""
        bus = data.draw(st.sampled_from(self.model.buses()))
        place = data.draw(st.sampled_from(_PCI_SLOTS)), data.draw(st.sampled_from((0, 0, 1, FUNCTIONS - 1)))
        if self._is_free(bus, *place):
            self._plug_card(bus, *place)

    @rule()
    def plug_card_anywhere(self) -> None:
        """A PCI function where QEMU chooses."""
        if Avoid.SLOT_31 not in self.source.avoid or not self._taken(PCI_BUS, SLOTS - 1):
            self._plug("pci", self.model.facts.cards[0], bus=PCI_BUS)

    @rule(data=st.data())
    def plug_functions(self, data: st.DataObject) -> None:
        """A multifunction device: function 0 comes last."""
        bus, slot = data.draw(st.sampled_from(self.model.buses())), data.draw(st.sampled_from(_PCI_SLOTS))
        if not self._taken(bus, slot):
            for function in (1, 0):
                self._plug_card(bus, slot, function)

    @rule(data=st.data())
    def plug_bridge(self, data: st.DataObject) -> None:
        """A bridge on a PHB, which brings a bus and never goes by itself."""
        only_own = Avoid.BRIDGE_BELOW_PHB in self.source.avoid
        buses = [PCI_BUS] if only_own else [bus for bus in self.model.buses() if bus not in self.model.devices]
        bus = data.draw(st.sampled_from(buses))
        slot = data.draw(st.sampled_from(_PCI_SLOTS))
        if not self._taken(bus, slot):
            self._plug("bridge", BRIDGE, bus=bus, addr=f"{slot:x}.0", chassis_nr=self._ids % 255 + 1)

    @rule(index=st.integers(1, _PHB_INDEXES))
    def plug_phb(self, index: int) -> None:
        """A PHB."""
        self._plug_phb(index)

    @precondition(lambda self: self.model.devices)
    @rule(data=st.data(), how=st.sampled_from(("id", "path", "id", "path", "another monitor")))
    def unplug(self, data: st.DataObject, how: str) -> None:
        """Any device, in whatever state, by its id or its place in QEMU's tree; now and then by a monitor that comes for it and goes."""
        devices = [one for one in self.model.devices.values() if self._may_go(one)]
        if devices:
            device = data.draw(st.sampled_from(devices))
            command = Command("device_del", {"id": f"{PERIPHERAL if how == 'path' else ''}{device.id}"})
            self.history.do(Aside(command) if how == "another monitor" else command)

    @precondition(lambda self: self._pending())
    @rule(data=st.data())
    def unplug_again(self, data: st.DataObject) -> None:
        """What is pending already."""
        self.history.do(Command("device_del", {"id": data.draw(st.sampled_from(self._pending())).id}))

    @precondition(lambda self: self.model.devices)
    @rule(data=st.data())
    def take(self, data: st.DataObject) -> None:
        """The guest takes a device, as far as it comes; of a DIMM maybe not all of it."""
        device = data.draw(st.sampled_from(list(self.model.devices.values())))
        parts = data.draw(st.integers(1, len(device.drcs)))
        steps = data.draw(st.integers(1, len(_TAKE)))
        for part in range(parts):
            for transition in _TAKE[:steps]:
                if device.kind is not Kind.PCI or transition in _PHYSICAL:
                    self._call(transition, device, part)

    @precondition(lambda self: self._pending())
    @rule(data=st.data())
    def give(self, data: st.DataObject) -> None:
        """The guest gives back a device that QEMU waits for; of a DIMM maybe not all of it."""
        device = data.draw(st.sampled_from(self._pending()))
        for part in range(data.draw(st.integers(1, len(device.drcs)))):
            for transition in _GIVE[: 1 if device.kind is Kind.PCI else None]:
                self._call(transition, device, part)

    @precondition(lambda self: self._pending())
    @rule(data=st.data(), reconfigure=st.booleans())
    def refuse(self, data: st.DataObject, *, reconfigure: bool) -> None:
        """The guest keeps a device that QEMU waits for."""
        device = data.draw(st.sampled_from(self._pending()))
        part = data.draw(st.integers(0, len(device.drcs) - 1))
        self._call(Transition.CONFIGURE if reconfigure else Transition.UNISOLATE, device, part)

    @precondition(lambda self: self.model.known)
    @rule(data=st.data())
    def call(self, data: st.DataObject) -> None:
        """Any call on any connector, also of what is gone; rather one that leads to what was not reached yet."""
        every = list(self._possible())
        wanted = [call for call, pair in every if pair in self.source.wanted]
        calls = wanted or [call for call, _ in every]
        if calls:
            self.history.do(data.draw(st.sampled_from(calls)))

    @precondition(lambda self: self.source.wanted)
    @rule(data=st.data())
    def reach(self, data: st.DataObject) -> None:
        """What was not reached yet, by the shortest way."""
        drc_class, state, transition = data.draw(st.sampled_from(sorted(self.source.wanted)))
        devices = [one for one in self.model.devices.values() if one.drcs and class_of(one.drcs[0]) is drc_class]
        if not devices:
            self._plug_one(drc_class)
            return
        device = data.draw(st.sampled_from(devices))
        path = way(drc_class, self.model.state(device.drcs[0]), state, self.model.facts.features)
        for one in (*(path or ()), transition):
            self._bring(device, one)

    @rule()
    def reset(self) -> None:
        """The machine's reset button."""
        if Avoid.CORE_REMOVAL not in self.source.avoid or not any(one.kind is Kind.CORE for one in self._pending()):
            self.history.do(Command("system_reset"))

    @rule()
    def breathe(self) -> None:
        """The machine runs for a moment: its firmware's first instructions."""
        self.history.do(Command("cont"))
        self.history.do(Command("stop"))

    @rule()
    def take_events(self) -> None:
        """The guest takes what QEMU has to tell it."""
        self.history.do(TakeEvents())

    @precondition(lambda self: self.model.can_move)
    @rule(data=st.data(), seldom=st.integers(0, 2), stored=st.booleans())
    def migrate(self, data: st.DataObject, seldom: int, stored: bool) -> None:
        """To another QEMU, most often with something pending; then the guest or a user goes on with it. It costs as much as fifty steps."""
        if seldom or (Avoid.CARD_IN_A_MOVE in self.source.avoid and self._has_cards()):
            return
        configured = [one for one in self.model.devices.values() if self._is_configured(one) and self._may_go(one)]
        if configured:
            self.history.do(Command("device_del", {"id": data.draw(st.sampled_from(configured)).id}))
        self.history.do(Move(stored))
        if pending := self._pending():
            device = data.draw(st.sampled_from(pending))
            match data.draw(st.sampled_from(("refuse", "refuse", "give", "again", "reset"))):
                case "refuse":
                    self._call(data.draw(st.sampled_from(_REFUSE)), device, len(device.drcs) - 1)
                case "give":
                    self._call(Transition.ISOLATE, device, 0)
                case "again" if self._may_go(device):
                    self.history.do(Command("device_del", {"id": device.id}))
                case "reset":
                    self.reset()

    @rule(data=st.data())
    def do_nonsense(self, data: st.DataObject) -> None:
        """What QEMU must refuse."""
        self.history.do(data.draw(st.sampled_from(list(_nonsense(self.model)))))

    def _has_cards(self) -> bool:
        return any(one.kind is Kind.PCI and not one.is_bridge for one in self.model.devices.values())

    def _plug_phb(self, index: int) -> None:
        if Avoid.PHB_AGAIN not in self.source.avoid or index not in self._phbs:
            self._phbs.add(index)
            self._plug("phb", PHB, index=index)

    def _plug_one(self, drc_class: DrcClass) -> None:
        match drc_class:
            case DrcClass.CPU:
                self._plug("core", self.model.facts.core_type, **{"core-id": 1})
            case DrcClass.LMB:
                self._plug_memory("dimm", DIMM, LMB, "ram")
            case DrcClass.PCI:
                self._plug("pci", self.model.facts.cards[0], bus=PCI_BUS)
            case DrcClass.PHB:
                self._plug_phb(1)
            case DrcClass.PMEM:
                self.plug_nvdimm()

    def _bring(self, device: Modelled, transition: Transition) -> None:
        """Do to a device's first connector whatever it is."""
        match transition:
            case Transition.UNPLUG:
                if self._may_go(device):
                    self.history.do(Command("device_del", {"id": device.id}))
            case Transition.RESET:
                self.reset()
            case Transition.ATTACH:
                self._plug_one(class_of(device.drcs[0]) or DrcClass.PCI)
            case _:
                self._call(transition, device, 0)

    def _plug(self, prefix: str, driver: str, **properties: Any) -> None:
        self._ids += 1
        self.history.do(Command("device_add", {"driver": driver, "id": f"{prefix}{self._ids}", **properties}))

    def _plug_memory(self, prefix: str, driver: str, size: int, backend: str, **properties: Any) -> None:
        memory = f"memory{self._ids + 1}"
        self.history.do(Command("object-add", {"qom-type": f"memory-backend-{backend}", "id": memory, "size": size}))
        self._plug(prefix, driver, memdev=memory, **properties)

    def _plug_card(self, bus: str, slot: int, function: int) -> None:
        self._plug("pci", self.model.facts.cards[0], bus=bus, addr=f"{slot:x}.{function}", multifunction=True)

    def _taken(self, bus: str, slot: int) -> list[int]:
        return [one.function for one in self.model.devices.values() if (one.bus, one.slot) == (bus, slot)]

    def _is_free(self, bus: str, slot: int, function: int) -> bool:
        """Return whether a function may be plugged there, or at least QEMU would live on."""
        return Avoid.TAKEN_FUNCTION not in self.source.avoid or not function or function not in self._taken(bus, slot)

    def _pending(self) -> list[Modelled]:
        return [one for one in self.model.devices.values() if self.model.is_pending(one)]

    def _is_configured(self, device: Modelled) -> bool:
        return all(self.model.state(index) is State.CONFIGURED for index in device.drcs) and not device.is_bridge

    def _may_go(self, device: Modelled) -> bool:
        if device.kind is Kind.DIMM and Avoid.PART_OF_A_DIMM in self.source.avoid:
            return all(self.model.state(index) is not State.EMPTY for index in device.drcs)
        return device.kind is not Kind.CORE or Avoid.CORE_REMOVAL not in self.source.avoid

    def _call(self, transition: Transition, device: Modelled, part: int) -> None:
        if not self._is_deadly(transition, device):
            self.history.do(Call(transition, device.id, part))

    def _is_deadly(self, transition: Transition, device: Modelled) -> bool:
        """Return whether it may be the refusal that is to be left out."""
        return Avoid.REFUSAL_AFTER_MOVE in self.source.avoid and transition in _REFUSE and self.model.is_forgotten(device)

    def _possible(self) -> Iterator[tuple[Call, Pair | None]]:
        for name, drcs in self.model.known.items():
            for part, index in enumerate(drcs):
                drc_class, state = class_of(index), self.model.state(index)
                device = self.model.devices.get(name)
                if drc_class is None or (device is None and state is not State.EMPTY):
                    continue
                for transition in _PHYSICAL if drc_class is DrcClass.PCI else _LOGICAL:
                    if device is not None and self._is_deadly(transition, device):
                        continue
                    yield Call(transition, name, part), (drc_class, state, transition)


def rules_for(source: Source) -> type[Rules]:
    """Return the rules for a source's histories."""
    return type("Histories", (Rules,), {"source": source})


def _nonsense(model: Model) -> Iterator[Step]:
    """Yield what is to be refused, whatever was before, and is to change nothing."""
    facts = model.facts
    card = {"driver": facts.cards[0], "id": "nonsense", "bus": PCI_BUS}
    yield Command("device_del", {"id": "nobody"})
    yield Command("device_del", {"id": f"{PERIPHERAL}nobody"})
    yield Command("device_add", {"driver": "no-such-device", "id": "nonsense"})
    yield Command("device_add", {**card, "bus": "no-such-bus"})
    yield Command("device_add", {**card, "addr": f"{SLOTS:x}.0"})
    yield Command("device_add", {"driver": facts.core_type, "id": "nonsense", "core-id": 0})
    yield Command("device_add", {"driver": facts.core_type, "id": "nonsense", "core-id": facts.cores})
    yield Command("device_add", {"driver": PHB, "id": "nonsense", "index": 0})
    yield Command("device_add", {"driver": PHB, "id": "nonsense", "index": 31})
    yield Command("device_add", {"driver": DIMM, "id": "nonsense", "memdev": "no-such-memory"})
    yield Command("object-del", {"id": "no-such-memory"})
    for device in model.devices.values():
        yield Command("device_add", {**card, "id": device.id})
        if device.backend:
            yield Command("object-del", {"id": device.backend})
            yield Command("device_add", {"driver": DIMM, "id": "nonsense", "memdev": device.backend})
    # LoPAR's isolation state and allocation state: a connector that is not there, and a value that there is not.
    for indicator in (9001, 9003):
        yield OddCall((indicator, 0x10000FFF, 1))
        yield OddCall((indicator, 0x7FFFFFFF, 0))
        yield OddCall((indicator, 0x10000001, 99))
