"""A fake machine for exploration: it does what the model says, but for a bug that a test plants."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from hypothesis.stateful import RuleBasedStateMachine

from pytest_spapr.coverage.replay import Driven
from pytest_spapr.explore.firmware import FirmwareScene
from pytest_spapr.explore.history import Violation
from pytest_spapr.explore.known import Avoid
from pytest_spapr.explore.model import DELETED, Facts, Model
from pytest_spapr.explore.rules import rules_for
from pytest_spapr.explore.search import Source
from pytest_spapr.explore.steps import Aside, Call, Command, Move, Step
from pytest_spapr.explore.world import Seen
from pytest_spapr.hotplug.drc_model import State
from pytest_spapr.hotplug.outcome import Kind

HEARS_ALL = frozenset(
    {
        *("core-refusal-heard", "dimm-refusal-heard", "dimm-reconfigure-heard", "memory-unplug-before-cas"),
        *("repeat-core-announced", "repeat-dimm-rejected", "repeat-pci-rejected", "repeat-phb-rejected"),
        *("DEVICE_UNPLUG_GUEST_ERROR", "dimm-refusal-doubled"),
    }
)
FACTS = Facts(core_type="power9-spapr-cpu-core", cores=8, slots=4, features=HEARS_ALL)

#: Changes what is seen of a step. It is given the steps up to then, this one included.
Bug = Callable[[list[Step], Seen], Seen]


def sound(_: list[Step], seen: Seen) -> Seen:
    return seen


class FakeWorld:
    """Plays by the model. :param facts: what it believes of itself: not those that the search's model is told, if a bug is there."""

    facts = FACTS
    drivers: Mapping[str, str] = {}

    def __init__(self, bug: Bug = sound, facts: Facts = FACTS) -> None:
        self._bug = bug
        self._model = Model(facts)
        self._steps: list[Step] = []
        self._lmbs = 4
        self._cards = 0
        self.closed = False

    def do(self, step: Step, index: int | None) -> Seen:
        assert (index is None) or isinstance(step, Call)
        self._steps.append(step)
        attached = self._attached(step)
        expected = self._model.take(step, attached)
        told = tuple(event for event, count in expected.told.items() for _ in range(count))
        seen = Seen(
            refusal="no" if expected.refused else None,
            status=expected.status,
            count=expected.count,
            attached=() if expected.refused else attached,
            events=(*told, *((DELETED, device) for device in expected.deleted)),
        )
        return self._bug(self._steps, seen)

    def settle(self) -> Seen:
        return Seen()

    def states(self) -> Mapping[int, State]:
        return {index: state for index, state in self._model.connectors.items() if state is not State.CONFIGURED}

    def inventory(self) -> frozenset[str]:
        return frozenset(self._model.devices)

    def driven(self) -> Driven:
        return {"CPU": {"empty": {"attach": 1}}}

    def write(self, jsonl: Path, text: Path) -> None:
        jsonl.write_text(f"{len(self._steps)}\n", encoding="utf-8")
        text.write_text("all that was seen\n", encoding="utf-8")

    def close(self) -> None:
        self.closed = True

    def _attached(self, step: Step) -> tuple[int, ...]:
        """Return the connectors of a device that is to come, if it comes."""
        if not isinstance(step, Command) or step.name != "device_add":
            return ()
        given = step.arguments
        match given["driver"]:
            case "pc-dimm":
                count = self._model.backends.get(given["memdev"], 0) >> 28
                self._lmbs += count
                return tuple(0x80000000 + self._lmbs - number for number in reversed(range(count)))
            case "nvdimm":
                return (0x90000000 + self._lmbs,)
            case "spapr-pci-host-bridge":
                return (0x20000000 | given["index"],)
            case self.facts.core_type:
                return (0x10000000 | given.get("core-id", 0),)
        # Any number will do, as long as its PHB is the first one and it is on no bridge.
        self._cards += 1
        return (0x40000000 | self._cards,)


class FakeGround:
    """:ivar worlds: all that were made. :param known: the defect that a violation is held for."""

    def __init__(self, bug: Bug = sound, known: tuple[str, Avoid] | None = None) -> None:
        self.worlds: list[FakeWorld] = []
        self._bug = bug
        self._known = known

    def world(self) -> FakeWorld:
        return FakeWorld(self._bug)

    def scene(self) -> FirmwareScene:
        self.worlds.append(self.world())
        return FirmwareScene(self.worlds[-1])

    def rules(self, source: Source) -> type[RuleBasedStateMachine]:
        return rules_for(source)

    def known(self, _: Violation) -> tuple[str, Avoid] | None:
        return self._known


class FakePair(FakeGround):
    """Two builds, of which the other one calls its cores by another name, and alone has the bug."""

    def scene(self) -> FirmwareScene:
        one, other = FakeWorld(), FakeWorld(self._bug)
        other.drivers = {FACTS.core_type: "power10-spapr-cpu-core"}
        return FirmwareScene(one, other, ("7.2", "11.1"))


def dies_of_phb_after_core(steps: list[Step], seen: Seen) -> Seen:
    """QEMU dies when a PHB comes after a core has gone."""
    commands = [step for step in steps if isinstance(step, Command)]
    cores = {step.arguments["id"] for step in commands if step.arguments.get("driver") == FACTS.core_type}
    gone = [step for step in commands if step.name == "device_del" and step.arguments["id"].rpartition("/")[2] in cores]
    last = steps[-1]
    if gone and isinstance(last, Command) and last.arguments.get("driver") == "spapr-pci-host-bridge":
        return replace(seen, end="QEMU was killed by SIGSEGV")
    return seen


def dies_of_phb_beside_core(steps: list[Step], seen: Seen) -> Seen:
    """QEMU dies when a PHB comes after a core: most histories find that."""
    drivers = [step.arguments.get("driver") for step in steps if isinstance(step, Command)]
    dies = FACTS.core_type in drivers and drivers[-1:] == ["spapr-pci-host-bridge"] and isinstance(steps[-1], Command)
    return replace(seen, end="QEMU was killed by SIGSEGV") if dies else seen


def loses_an_event(steps: list[Step], seen: Seen) -> Seen:
    """The end of a device is not told if it goes by a reset."""
    if steps[-1] == Command("system_reset"):
        return replace(seen, events=())
    return seen


def tells_twice(steps: list[Step], seen: Seen) -> Seen:
    """A refusal is told once too often."""
    extra = Counter(name for name, _ in seen.events)["DEVICE_UNPLUG_GUEST_ERROR"]
    return replace(seen, events=(*seen.events, seen.events[-1])) if extra else seen


def dies_of_a_refusal_after_a_move(steps: list[Step], seen: Seen) -> Seen:
    """QEMU dies when a DIMM is refused that was asked for before the machine moved, and not since."""
    moved = max((number for number, step in enumerate(steps) if isinstance(step, Move)), default=0)
    since = {
        str(step.arguments["id"]).rpartition("/")[2]
        for step in map(command_of, steps[moved:])
        if step and step.name == "device_del"
    }
    refused = {device for name, device in seen.events if name != DELETED and device.startswith("dimm")}
    return replace(seen, end="QEMU was killed by SIGABRT") if moved and refused - since else seen


def dies_of_a_phb_that_comes_again(steps: list[Step], seen: Seen) -> Seen:
    """QEMU dies when a PHB comes where there was one."""
    indexes = [step.arguments["index"] for step in map(command_of, steps) if step and "index" in step.arguments]
    last = command_of(steps[-1])
    again = last is not None and last.arguments.get("index") in indexes[:-1] and seen.refusal is None
    return replace(seen, end="QEMU was killed by SIGABRT") if again else seen


def has_no_move_with_a_card(steps: list[Step], seen: Seen) -> Seen:
    """The other QEMU does not take a virtio device. Those with ids of another kind are nonsense, and were refused."""
    plugs = [step.arguments for step in map(command_of, steps) if step and str(step.arguments.get("id")).startswith(Kind.PCI)]
    cards = [plug for plug in plugs if str(plug.get("driver", "")).startswith("virtio-")]
    refused = isinstance(steps[-1], Move) and cards
    return replace(seen, refusal="VQ 0 vring.num 1024 exceeds allocated max 8") if refused else seen


def command_of(step: Step) -> Command | None:
    """Return the command of a step, by whatever monitor; None if it is none."""
    step = step.command if isinstance(step, Aside) else step
    return step if isinstance(step, Command) else None
