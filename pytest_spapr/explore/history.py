"""A history as it is played: each step is done on the world and taken by the model, and both must say the same."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final, NoReturn, Protocol

from pytest_spapr.deadline import Deadline
from pytest_spapr.explore import observe
from pytest_spapr.explore.model import DELETED, Expected, Model
from pytest_spapr.explore.steps import Aside, Call, Command, Move, Step, TakeEvents, named
from pytest_spapr.explore.world import Seen, World, WorldEnded
from pytest_spapr.hotplug.drc_model import State, class_of
from pytest_spapr.hotplug.rtas import Status

#: After so many steps, and at its end, the whole of QEMU's state is held against the model's. It costs 0.02 s.
_FULL_CHECK: Final = 12
#: Where a violation is seen that is not one of the last step alone.
_CHECK, AT_THE_END = "the whole state", "at the end"
_NUMBERS: Final = re.compile(r"0x[0-9a-f]+|\d+")


@dataclass(frozen=True, slots=True)
class Done:
    """A step that was done.

    :ivar index: of the connector that an RTAS call was for. :ivar expected: what it had to bring. :ivar shape: what it was, in words
        that are the same for all like it.
    :ivar code: the lines of a test that do it. :ivar sent: QMP commands, and lines for the guest's shell, that do it; both where there is
        a guest.
    :ivar options: what the other QEMU of a migration was started with.
    """

    step: Step
    index: int | None
    expected: Expected
    shape: str
    code: tuple[str, ...] = ()
    sent: tuple[Mapping[str, Any] | str, ...] = ()
    options: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Rest:
    """What follows the last step. :ivar code: as of :class:`Done`. :ivar sent: as of :class:`Done`."""

    code: tuple[str, ...] = ()
    sent: tuple[Mapping[str, Any] | str, ...] = ()


@dataclass(frozen=True, slots=True)
class Violation:
    """Something that must not be.

    :ivar done: the history up to it. :ivar text: what was expected and what was seen.
    :ivar subject: what the last step was, in general words. :ivar ended: whether QEMU ended by it.
    :ivar defect: the known one that it is, where the machine told.
    :ivar states: what connectors had to be in, but for those that are configured.
    :ivar twins: what broke on each of two builds that were to do the same; empty where there is one build.
    :ivar rest: how the machine was brought to rest after the last step, and what was held against it then, where that is what broke.
    :ivar drivers: what the build that broke calls the device models that its steps name otherwise.
    :ivar devices: those that had to be there, the last one to come included, with bus, slot and function, if it has them.
    """

    done: tuple[Done, ...]
    text: str
    subject: str
    ended: bool = False
    defect: str | None = None
    states: Mapping[int, State] = field(default_factory=dict)
    devices: Mapping[str, tuple[str, int, int]] = field(default_factory=dict)
    twins: tuple[Violation | None, ...] = ()
    rest: Rest = field(default_factory=Rest)
    drivers: Mapping[str, str] = field(default_factory=dict)

    @property
    def steps(self) -> tuple[Step, ...]:
        return tuple(one.step for one in self.done)

    @property
    def shape(self) -> tuple[str, ...]:
        return tuple(one.shape for one in self.done)

    @property
    def own(self) -> tuple[Done, ...]:
        """The history as the build that broke was told it."""
        return tuple(replace(one, step=named(one.step, self.drivers)) for one in self.done)

    @property
    def build(self) -> int:
        """Which of the builds broke: 0 the first one, also if both did, 1 the other."""
        return next((number for number, one in enumerate(self.twins) if one is not None), 0)

    @property
    def here(self) -> tuple[Done, ...]:
        """What was done in the QEMU that the machine was in at last; a move that is itself what broke has brought it to no other."""
        moves = (number for number, step in enumerate(self.steps[: len(self.done) - self.is_of_move]) if isinstance(step, Move))
        return self.done[max(moves, default=-1) + 1 :]

    @property
    def had_moved(self) -> bool:
        """Whether the machine was in another QEMU than at its begin."""
        return len(self.here) < len(self.done)

    @property
    def is_of_move(self) -> bool:
        """Whether a move broke, of which either QEMU may be the cause."""
        return self.subject == Move.__name__

    @property
    def signature(self) -> str:
        """What went wrong, without ids and numbers, and by what kind of step."""
        by = (self.subject,) if self.subject in (_CHECK, AT_THE_END) else self.shape[-1:]
        return _NUMBERS.sub("N", ": ".join((*by, self.text)))

    def explains(self, other: Violation) -> bool:
        """Return whether another violation is most likely this one again, by a longer history."""
        return self.signature == other.signature and contains(other.shape, self.shape)


def contains(whole: Iterable[str], part: Iterable[str]) -> bool:
    """Return whether a history has all steps of another one, in order."""
    left = iter(whole)
    return all(shape in left for shape in part)


class Violated(Exception):
    """A history broke off. :ivar violation: by what."""

    def __init__(self, violation: Violation) -> None:
        self.violation = violation
        super().__init__(violation.text)


class Watcher(Protocol):
    """Who goes on when a history breaks."""

    def leaves_out(self, shape: tuple[str, ...]) -> bool:
        """Return whether a history is not to go on so. :param shape: of its steps, the next one included."""

    def met(self, violation: Violation) -> None:
        """Take note of what broke. :raises Violated: it is news."""


class Play(ABC):
    """A history that goes on step by step.

    :ivar done: the steps up to now. :ivar watcher: told of what breaks; without one, a violation is raised. :ivar over: whether it broke.
    """

    def __init__(self) -> None:
        self.done: list[Done] = []
        self.watcher: Watcher | None = None
        self.over = False

    def do(self, step: Step) -> None:
        """Do a step and check all that can be seen of it at once.

        :raises Violated: something is not as it must be.
        """
        shape = (*(done.shape for done in self.done), self.shape(step))
        if not self.over and not (self.watcher and self.watcher.leaves_out(shape)):
            self._guarded(lambda: self._do(step))

    def finish(self) -> None:
        """Check once more when all has come that is on its way. :raises Violated: it has not, or something else is wrong."""
        if not self.over:
            self._guarded(self._finish)

    @abstractmethod
    def shape(self, step: Step) -> str:
        """Return what a step is, in words that are the same for all like it."""

    @abstractmethod
    def _do(self, step: Step) -> None: ...

    @abstractmethod
    def _finish(self) -> None: ...

    @abstractmethod
    def _forget(self) -> None:
        """Leave nothing for the rules to do: what they still do is for nobody."""

    def _guarded(self, act: Callable[[], None]) -> None:
        try:
            act()
        except Violated as violated:
            if self.watcher is None:
                raise
            self.over = True
            self._forget()
            self.watcher.met(violated.violation)


class History(Play):
    """A history without a guest: each step is done on the world and taken by the model, and both must say the same.

    :ivar model: what the machine must be. :ivar broken: of two machines that are to do the same, which one broke.
    """

    broken = 0

    def __init__(self, world: World) -> None:
        super().__init__()
        self.model = Model(world.facts)
        self._world = world
        self._unchecked = 0

    def _do(self, step: Step) -> None:
        if isinstance(step, Call) and self.model.index(step) is None:
            # There never was such a device: in a part of a longer history.
            return
        if isinstance(step, Move):
            if not self.model.can_move:
                return
            # What is on its way to its end can be told to no other QEMU.
            self._settle()
        subject, shape = self._subject(step), self.shape(step)
        index = self.model.index(step) if isinstance(step, Call) else None
        seen = self._world.do(step, index)
        expected = self.model.take(step, seen.attached)
        self.done.append(Done(step, index, expected, shape, options=seen.options))
        if seen.end is not None:
            self._violate(seen.end, subject, ended=True)
        for line in self._differences(expected, seen):
            self._violate(line, subject)
        self._unchecked += 1
        if self._unchecked >= _FULL_CHECK:
            self.check()

    def _forget(self) -> None:
        self.model = Model(self.model.facts)

    def check(self) -> None:
        """Hold all that QEMU has of devices and connectors against the model. :raises Violated: it is not the same."""
        self._unchecked = 0
        try:
            there, states = self._world.inventory(), self._world.states()
        except WorldEnded as ended:
            self._violate(str(ended), _CHECK, ended=True)
        mine = frozenset(self.model.devices)
        if there != mine:
            gone, alien = sorted(mine - there), sorted(there - mine)
            self._violate(f"QEMU's devices: {gone or 'none'} should be there, {alien or 'none'} should not", _CHECK)
        expected = self._expected_states()
        for index in sorted(states.keys() | expected.keys()):
            was, must = states.get(index, "not saved"), expected.get(index, "not saved")
            if was != must:
                self._violate(f"{class_of(index)} connector {index:#x}: expected {must}, it is {was}", _CHECK)

    def _finish(self) -> None:
        self._settle()
        waiting = self._world.do(TakeEvents(), None)
        expected = self.model.take(TakeEvents())
        rest = Rest((f"assert qtest.take_events() == {expected.count}",))
        for line in self._differences(expected, waiting):
            self._violate(line, AT_THE_END, rest=rest)
        if self.model.owed:
            # One is enough to be looked at, and only one can be left of a history that is made small.
            self._violate(
                f"DEVICE_DELETED never came for a {min(re.sub(_NUMBERS, '', one) for one in self.model.owed)}", AT_THE_END
            )
        self.check()

    def _settle(self) -> None:
        """Wait for what is owed, for some time."""
        deadline = Deadline(observe.SETTLE_SECONDS)
        while True:
            seen = self._world.settle()
            if seen.end is not None:
                self._violate(seen.end, AT_THE_END, ended=True)
            for line in self._events(Expected(), seen):
                self._violate(line, AT_THE_END)
            if not self.model.owed or deadline.expired:
                break

    def _violate(self, text: str, subject: str, *, ended: bool = False, rest: Rest | None = None) -> NoReturn:
        devices = {one.id: (one.bus, one.slot, one.function) for one in self.model.devices.values()}
        states = self._expected_states()
        drivers = self._world.drivers
        done, rest = tuple(self.done), rest or Rest()
        raise Violated(
            Violation(done, text, subject, ended=ended, states=states, devices=devices, rest=rest, drivers=drivers),
        )

    def _expected_states(self) -> dict[int, State]:
        return {index: state for index, state in self.model.connectors.items() if state is not State.CONFIGURED}

    def _differences(self, expected: Expected, seen: Seen) -> Iterable[str]:
        if expected.refused != (seen.refusal is not None):
            yield f"expected to be {'refused' if expected.refused else 'accepted'}, reply: {seen.refusal or 'accepted'}"
        if expected.status is not None and expected.status != seen.status:
            yield f"status: expected {expected.status.name}, observed {_status(seen.status)}"
        if expected.count is not None and expected.count != seen.count:
            yield f"events for the guest: expected {expected.count}, observed {seen.count}"
        if expected.attached != len(seen.attached):
            yield f"connectors that got a device: expected {expected.attached}, observed {len(seen.attached)}"
        yield from self._events(expected, seen)

    def _events(self, expected: Expected, seen: Seen) -> Iterable[str]:
        """Hold the events of a step against what it must bring and what is owed; what has come is owed no more."""
        told = Counter(event for event in seen.events if event[0] != DELETED)
        for name, device in sorted(told.keys() | expected.told.keys()):
            must, came = expected.told[name, device], told[name, device]
            if must != came:
                yield f"{name}: expected x{must}, observed x{came}"
        for name, device in seen.events:
            if name != DELETED:
                continue
            if not self.model.owed[device]:
                yield f"DEVICE_DELETED of {device} came without a cause, or once more"
            self.model.owed[device] -= 1
        self.model.owed = +self.model.owed

    def _subject(self, step: Step) -> str:
        """Return what a step is, in words that are the same for all like it."""
        if isinstance(step, Aside):
            return self._subject(step.command)
        if isinstance(step, Call) and (index := self.model.index(step)) is not None:
            return f"{step.transition} {class_of(index)} connector that is {self.model.state(index)}"
        if isinstance(step, Command):
            what = step.arguments.get("driver") or self._kind(str(step.arguments.get("id", "")))
            return f"{step.name} {what}".strip()
        return type(step).__name__

    def shape(self, step: Step) -> str:
        match step:
            case Call(transition):
                index = self.model.index(step)
                return f"{transition} {'' if index is None else class_of(index)}"
            case Command("device_add", {"driver": driver}):
                return f"device_add {driver}"
            case Command("device_del", {"id": ident}):
                device = self.model.devices.get(str(ident).rpartition("/")[2])
                return f"device_del {'' if device is None else device.kind}"
            case Command(name):
                return name
            case Aside(command):
                return self.shape(command)
        return type(step).__name__

    def _kind(self, name: str) -> str:
        device = self.model.devices.get(name.rpartition("/")[2])
        return "" if device is None else f"{device.kind}, pending" if self.model.is_pending(device) else str(device.kind)


def _status(value: int | None) -> str:
    return Status(value).name if value in set(Status) else str(value)


class Twins(History):
    """A history on two builds at once: each must do what its own model says, and where both do otherwise in one way, it is no difference.

    :param names: of the two builds, for the words of a violation.
    """

    #: What a violation that both show alike is counted as.
    ALIKE: Final = "the same on both"

    def __init__(self, world: World, other: World, names: tuple[str, str]) -> None:
        super().__init__(world)
        self._other = History(other)
        self._names = names

    def _do(self, step: Step) -> None:
        self._both(super()._do, self._other.do, step)

    def _finish(self) -> None:
        self._both(super()._finish, self._other.finish)

    def _both(self, one: Callable[..., None], other: Callable[..., None], *step: Step) -> None:
        found = [_violation(act, *step) for act in (one, other)]
        broken = [violation for violation in found if violation is not None]
        if not broken:
            return
        self.broken = found.index(broken[0])
        if len(broken) == len(found) and broken[0].signature == broken[1].signature:
            raise Violated(replace(broken[0], defect=self.ALIKE, twins=tuple(found)))
        text = "; ".join(
            f"{name}: {'as promised' if violation is None else violation.text}"
            for name, violation in zip(self._names, found, strict=True)
        )
        raise Violated(replace(broken[0], text=text, twins=tuple(found)))


def _violation(act: Callable[..., None], *step: Step) -> Violation | None:
    try:
        act(*step)
    except Violated as violated:
        return violated.violation
    return None
