"""What must come of each step on a machine without a guest: the devices, their connectors, and what QEMU owes to its users.

Read in hw/ppc/spapr.c, spapr_pci.c and spapr_drc.c of QEMU 5.2 to 11.1; what differs between them is told by the build's features.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

from pytest_spapr.explore.instances import Instances
from pytest_spapr.explore.steps import Aside, Call, Command, Move, OddCall, Step, TakeEvents
from pytest_spapr.hotplug.drc_model import NOT_PENDING, DrcClass, State, Transition, after, class_of, is_refusal
from pytest_spapr.hotplug.outcome import Kind
from pytest_spapr.hotplug.rtas import Status, answer

LMB: Final = 256 << 20
LABEL: Final = 128 << 10
PCI_BUS: Final = "pci.0"
BRIDGE: Final = "pci-bridge"
PHB: Final = "spapr-pci-host-bridge"
DIMM: Final = "pc-dimm"
NVDIMM: Final = "nvdimm"
PERIPHERAL: Final = "/machine/peripheral/"
#: SPAPR_MAX_PHBS of hw/ppc/spapr_pci.h.
PHBS: Final = 31
SLOTS: Final = 32
FUNCTIONS: Final = 8

DELETED: Final = "DEVICE_DELETED"
_GUEST_ERROR: Final = "DEVICE_UNPLUG_GUEST_ERROR"
_MEMORY_ERROR: Final = "MEM_UNPLUG_ERROR"


@dataclass(frozen=True, kw_only=True, slots=True)
class Facts:
    """What the model must know of a machine.

    :ivar core_type: the device model of its cores. :ivar cores: how many it can have. :ivar slots: for memory devices.
    :ivar features: of the build, as ``QemuBuild.features``. :ivar onward: of the one that it moves to, if that is another one.
    :ivar cards: device models of PCI functions.
    """

    core_type: str
    cores: int
    slots: int
    features: frozenset[str]
    onward: frozenset[str] | None = None
    cards: tuple[str, ...] = ("virtio-rng-pci",)


@dataclass(slots=True)
class Modelled:
    """A device. :ivar drcs: the indexes of its connectors. :ivar bus: :ivar slot: :ivar function: where it is, if it is a PCI function.

    :ivar number: a core's id, a PHB's index, a bridge's chassis, a memory device's slot. :ivar backend: of a memory device.
    """

    id: str
    kind: Kind
    drcs: tuple[int, ...] = ()
    bus: str = ""
    slot: int = 0
    function: int = 0
    number: int = 0
    backend: str = ""
    is_bridge: bool = False

    @property
    def own_bus(self) -> str:
        """The bus that comes with it, or an empty string."""
        return f"{self.id}.0" if self.kind is Kind.PHB else self.id if self.is_bridge else ""


@dataclass(slots=True)
class Expected:
    """What a step must bring.

    :ivar refused: whether QEMU must refuse the command. :ivar status: of an RTAS call. :ivar count: of the events that the guest takes.
    :ivar attached: how many connectors get a device. :ivar told: all events about unplugs but DEVICE_DELETED, with their device.
    :ivar deleted: the devices that go by it: each is told once, now or later.
    """

    refused: bool = False
    status: Status | None = None
    count: int | None = None
    attached: int = 0
    told: Counter[tuple[str, str]] = field(default_factory=Counter)
    deleted: list[str] = field(default_factory=list)


def place_of(addr: object) -> tuple[int, int]:
    """Return the slot and the function of a PCI device's property ``addr``."""
    slot, _, function = str(addr).partition(".")
    return int(slot, 16), int(function or "0", 16)


class _Refused(Exception):
    """QEMU must refuse this."""


class Model:
    """A machine at ``-S``, as it must be.

    :ivar devices: by id. :ivar connectors: the state of each that is not empty, by index. :ivar backends: the size of each, by id.
    :ivar owed: how often the end of each device is still to be told. :ivar waiting: events that the guest has not taken yet.
    """

    def __init__(self, facts: Facts) -> None:
        self.facts = facts
        self.devices: dict[str, Modelled] = {}
        self.connectors: dict[int, State] = {}
        self.backends: dict[str, int] = {}
        self.owed: Counter[str] = Counter()
        self.waiting = 0
        # Every device's connectors, also of those that are gone; and the memory devices that QEMU has on its list of pending ones.
        self.known: dict[str, tuple[int, ...]] = {}
        self._pending_dimms: set[str] = set()
        self._instances = Instances()

    @property
    def can_move(self) -> bool:
        """Whether the machine can migrate, and be what it was then.

        Known defects ``xive-tctx-instance``, ``phb-instance`` and ``dimm-part-migration``.
        """
        dimms = (one for one in self.devices.values() if one.kind is Kind.DIMM)
        return self._instances.same_elsewhere and all(self.state(index) is not State.EMPTY for one in dimms for index in one.drcs)

    def take(self, step: Step, attached: Iterable[int] = ()) -> Expected:
        """Take a step, and return what it must bring. :param attached: the connectors that QEMU's trace says have got a device."""
        expected = Expected()
        try:
            match step:
                case Command(name, arguments):
                    self._command(name, arguments, tuple(attached), expected)
                case Call():
                    self._call(step, expected)
                case OddCall():
                    expected.status = Status.PARAMETER_ERROR
                case TakeEvents():
                    expected.count, self.waiting = self.waiting, 0
                case Aside(Command(name, arguments)):
                    self._command(name, arguments, tuple(attached), expected)
                case Move():
                    # QEMU forgets which DIMMs are pending, not which LMBs are: they can be asked for once more.
                    self._pending_dimms.clear()
                    self.facts = replace(self.facts, features=self.facts.onward or self.facts.features)
        except _Refused:
            expected = Expected(refused=True)
        self.owed.update(expected.deleted)
        return expected

    def state(self, index: int) -> State:
        return self.connectors.get(index, State.EMPTY)

    def is_pending(self, device: Modelled) -> bool:
        """Return whether QEMU waits for the guest to give it back."""
        return any(self.state(index) in NOT_PENDING for index in device.drcs)

    def is_forgotten(self, device: Modelled) -> bool:
        """Return whether it is a DIMM of which QEMU knows no more that it waits for it, since the machine has moved."""
        return device.kind is Kind.DIMM and device.id not in self._pending_dimms and self.is_pending(device)

    def exists(self, index: int) -> bool:
        """Return whether there is such a connector: those of slots come and go with their PHB or bridge."""
        if class_of(index) is not DrcClass.PCI:
            return True
        phb, chassis = index >> 16 & 0xFFF, index >> 8 & 0xFF
        buses = {0: PCI_BUS} | {one.number: one.own_bus for one in self.devices.values() if one.kind is Kind.PHB}
        bridges = {(one.bus, one.number) for one in self.devices.values() if one.is_bridge}
        return phb in buses and (chassis == 0 or (buses[phb], chassis) in bridges)

    def _command(self, name: str, given: Mapping[str, Any], attached: tuple[int, ...], expected: Expected) -> None:
        match name:
            case "device_add":
                device = self._added(given)
                self._attach(device, attached)
                expected.attached = max(len(device.drcs), 1) if device.kind is not Kind.DIMM else self._lmbs(device)
            case "device_del":
                self._delete(self._found(str(given["id"])), expected)
            case "object-add":
                self._require(given["id"] not in self.backends)
                self.backends[given["id"]] = given["size"]
            case "object-del":
                self._require(given["id"] in self.backends and not self._users(given["id"]))
                del self.backends[given["id"]]
            case "system_reset":
                self.waiting = 0
                for device in list(self.devices.values()):
                    for index in device.drcs:
                        self._move(index, Transition.RESET)
                    self._bury(device, expected)

    @staticmethod
    def _require(condition: object) -> None:
        if not condition:
            raise _Refused

    def _added(self, given: Mapping[str, Any]) -> Modelled:
        """Return the device that is to come. :raises _Refused: it is not to."""
        driver, ident = str(given["driver"]), str(given["id"])
        self._require(ident not in self.devices)
        if driver == self.facts.core_type:
            return self._core(ident, given)
        match driver:
            case "pc-dimm" | "nvdimm":
                return self._memory(ident, given)
            case "spapr-pci-host-bridge":
                number = given.get("index", -1)
                taken = {0, *(one.number for one in self.devices.values() if one.kind is Kind.PHB)}
                self._require(number in range(PHBS) and number not in taken)
                return Modelled(ident, Kind.PHB, number=number)
        self._require(driver in (*self.facts.cards, BRIDGE))
        return self._function(ident, driver, given)

    def _core(self, ident: str, given: Mapping[str, Any]) -> Modelled:
        number = given.get("core-id", 0)
        taken = {0, *(one.number for one in self.devices.values() if one.kind is Kind.CORE)}
        self._require(number in range(self.facts.cores) and number not in taken)
        return Modelled(ident, Kind.CORE, number=number)

    def _memory(self, ident: str, given: Mapping[str, Any]) -> Modelled:
        backend = given.get("memdev", "")
        self._require(backend in self.backends and not self._users(backend))
        kind = Kind.NVDIMM if given["driver"] == NVDIMM else Kind.DIMM
        label = given.get("label-size", 0)
        size = self.backends[backend] - label
        self._require(size > 0 and size % LMB == 0 and (kind is Kind.DIMM or (label and given.get("uuid"))))
        self._require(given.get("node", 0) == 0)
        taken = {one.number for one in self.devices.values() if one.kind in (Kind.DIMM, Kind.NVDIMM)}
        free = [slot for slot in range(self.facts.slots) if slot not in taken]
        slot = given.get("slot", free[0] if free else -1)
        self._require(slot in free)
        return Modelled(ident, kind, number=slot, backend=backend)

    def _function(self, ident: str, driver: str, given: Mapping[str, Any]) -> Modelled:
        bus = str(given.get("bus", PCI_BUS))
        self._require(bus in self.buses())
        there = {(one.slot, one.function) for one in self.devices.values() if one.bus == bus}
        # No slot is one that there is not.
        free = next((slot for slot in range(SLOTS) if (slot, 0) not in there), SLOTS)
        place = place_of(given["addr"]) if "addr" in given else (free, 0)
        self._require(place[0] in range(self._first_slot(bus), SLOTS) and place[1] in range(FUNCTIONS))
        self._require(place not in there and (place[1] == 0 or (place[0], 0) not in there))
        self._require(given.get("multifunction") or all(slot != place[0] for slot, _ in there))
        device = Modelled(ident, Kind.PCI, bus=bus, slot=place[0], function=place[1])
        if driver == BRIDGE:
            device.is_bridge, device.number = True, given.get("chassis_nr", 0)
            taken = {one.number for one in self.devices.values() if one.is_bridge and one.bus == bus}
            self._require(device.number in range(1, 256) and device.number not in taken)
        return device

    def buses(self) -> list[str]:
        """Return the names of all PCI buses."""
        return [PCI_BUS, *(one.own_bus for one in self.devices.values() if one.own_bus)]

    def _first_slot(self, bus: str) -> int:
        # Slot 0 behind a bridge is that of its own hot-plug controller (SHPC).
        return 1 if bus in self.devices else 0

    def _attach(self, device: Modelled, attached: tuple[int, ...]) -> None:
        device.drcs = attached
        self.devices[device.id] = device
        self.known[device.id] = attached
        for index in attached:
            self._move(index, Transition.ATTACH)
        self._instances.add(device.id, device.kind, bridge=device.is_bridge)
        if device.kind is not Kind.PCI:
            self.waiting += 1
        elif device.function == 0:
            # Until function 0 comes nobody is told of the others (spapr_pci_plug).
            self.waiting += len(list(self._slot_mates(device)))

    def _lmbs(self, device: Modelled) -> int:
        return self.backends[device.backend] // LMB

    def _users(self, backend: str) -> bool:
        return any(one.backend == backend for one in self.devices.values())

    def _found(self, name: str) -> Modelled:
        device = self.devices.get(name.removeprefix(PERIPHERAL))
        self._require(device is not None)
        assert device is not None
        return device

    def _slot_mates(self, device: Modelled) -> Iterator[Modelled]:
        """Yield the functions that are in a function's slot, itself included."""
        return (one for one in list(self.devices.values()) if (one.bus, one.slot) == (device.bus, device.slot) and device.bus)

    def _move(self, index: int, transition: Transition) -> tuple[State, State | None]:
        """Do it to a connector, and return the states before and after it; None where nobody knows that it can be done."""
        drc_class = class_of(index)
        before = self.state(index)
        becomes = after(drc_class, before, transition, self.facts.features) if drc_class else None
        if becomes is State.EMPTY:
            self.connectors.pop(index, None)
        elif becomes is not None:
            self.connectors[index] = becomes
        return before, becomes

    def _delete(self, device: Modelled, expected: Expected) -> None:
        # spapr_memory_unplug_request and its like.
        self._require(device.kind is not Kind.NVDIMM and not device.is_bridge)
        features = self.facts.features
        if device.kind is Kind.DIMM:
            self._require("memory-unplug-before-cas" in features and device.id not in self._pending_dimms)
            self._pending_dimms.add(device.id)
        elif self.is_pending(device):
            self._require(f"repeat-{device.kind}-rejected" not in features)
            self.waiting += f"repeat-{device.kind}-announced" in features
            return
        if device.kind is Kind.PCI and device.function == 0:
            for other in self._slot_mates(device):
                if other is not device and not self.is_pending(other):
                    self._request(other, expected)
        self._request(device, expected)
        if device.kind is not Kind.PCI:
            # Also where the device went at once, and nobody needs to be told.
            self.waiting += 1
        elif device.function == 0:
            self.waiting += sum(one.id in self.devices for one in self._slot_mates(device))

    def _request(self, device: Modelled, expected: Expected) -> None:
        for index in device.drcs:
            self._move(index, Transition.UNPLUG)
        self._bury(device, expected)

    def _bury(self, device: Modelled, expected: Expected) -> None:
        """Let a device go if none of its connectors has it any more, with all that is below it."""
        if device.id in self.devices and all(self.state(index) is State.EMPTY for index in device.drcs):
            self._forget(device, expected)

    def _forget(self, device: Modelled, expected: Expected) -> None:
        del self.devices[device.id]
        self._pending_dimms.discard(device.id)
        expected.deleted.append(device.id)
        self._instances.remove(device.id)
        for index in device.drcs:
            self.connectors.pop(index, None)
        for below in [one for one in self.devices.values() if one.bus == device.own_bus and one.bus]:
            self._forget(below, expected)

    def _call(self, call: Call, expected: Expected) -> None:
        index = self.index(call)
        if index is None:
            return
        drc_class = class_of(index)
        if not self.exists(index) or (drc_class is DrcClass.PCI and "set" in call.transition):
            # No such connector, or a physical one, which is not allocated.
            expected.status = Status.PARAMETER_ERROR
            return
        before, becomes = self._move(index, call.transition)
        expected.status = answer(before, call.transition, becomes)
        device = next((one for one in self.devices.values() if index in one.drcs), None)
        if becomes is None or device is None:
            return
        if is_refusal(before, becomes):
            self._refuse(device, call.transition, expected)
        elif becomes is State.EMPTY:
            self._bury(device, expected)

    def _refuse(self, device: Modelled, transition: Transition, expected: Expected) -> None:
        """The guest keeps a device: QEMU tells so as often as this build does (``hotplug/contracts``)."""
        features, told = self.facts.features, 1
        if device.kind is Kind.DIMM:
            self._pending_dimms.discard(device.id)
            for index in device.drcs:
                state = self.state(index)
                if state in NOT_PENDING:
                    self.connectors[index] = NOT_PENDING[state]
            told += transition is Transition.UNISOLATE and "dimm-refusal-doubled" in features
            if _MEMORY_ERROR in features:
                expected.told[_MEMORY_ERROR, device.id] = 1
        if _GUEST_ERROR in features:
            expected.told[_GUEST_ERROR, device.id] = told

    def index(self, call: Call) -> int | None:
        """Return the connector that a call is for; None where there never was such a device, nor so many connectors of it."""
        drcs = self.known.get(call.device, ())
        return drcs[call.part] if call.part < len(drcs) else None
