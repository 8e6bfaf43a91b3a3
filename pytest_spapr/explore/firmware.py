"""A world without a guest: a QEMU at ``-S``, whose guest's part is played through its qtest server. A step costs some milliseconds."""

from __future__ import annotations

import re
import socket
import tempfile
from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from pytest_spapr.coverage import connectors
from pytest_spapr.coverage.replay import Driven
from pytest_spapr.deadline import Deadline
from pytest_spapr.errors import ConfigError, DeadlineExpired, MachineDied, MachineError, QmpRefused
from pytest_spapr.explore import observe
from pytest_spapr.explore.findings import Subject
from pytest_spapr.explore.history import History, Twins, Violation
from pytest_spapr.explore.known import Avoid, known_defect
from pytest_spapr.explore.model import Facts
from pytest_spapr.explore.script import Onward
from pytest_spapr.explore.search import Source
from pytest_spapr.explore.steps import Aside, Call, Command, Move, OddCall, Step, TakeEvents, named
from pytest_spapr.explore.world import Seen, World, WorldEnded, state_file
from pytest_spapr.hotplug import drc
from pytest_spapr.hotplug.drc_model import State
from pytest_spapr.hotplug.pseries import PseriesMachine
from pytest_spapr.hotplug.rtas import PlayedGuest
from pytest_spapr.machine import Harness
from pytest_spapr.qemu.argv import MachineSpec, cpu_model
from pytest_spapr.qemu.build import QemuBuild
from pytest_spapr.qemu.plugged import plugged, settled
from pytest_spapr.qemu.process import exit_in_words
from pytest_spapr.qemu.qtest import Qtest
from pytest_spapr.qemu.vmstate import device_state
from pytest_spapr.timeline import Lane, Timeline

if TYPE_CHECKING:
    from hypothesis.stateful import RuleBasedStateMachine

    from pytest_spapr.qemu.qmp import Qmp

#: More than a history can use up. A core that comes takes one of TCG's contexts for good (known defect ``tcg-contexts-run-out``).
SHAPE: Final[dict[str, Any]] = {"max_cpus": 128, "slots": 32, "memory": 256, "max_memory": 32768}
_VERSIONED: Final = re.compile(r"pseries-(\d+\.\d+)")


class FirmwareWorld:
    """A fresh machine; 0.3 s to start. :ivar machine: it. :ivar drivers: as in :class:`~pytest_spapr.explore.world.World`.

    :param core_type: what histories call its cores, if not as it does itself: builds differ in that.
    :param onward: the build that it moves to, if not its own; see :func:`shape_for`.
    """

    def __init__(
        self, harness: Harness, accelerator: str, *, core_type: str | None = None, onward: QemuBuild | None = None
    ) -> None:
        with ExitStack() as made:
            directory = Path(made.enter_context(tempfile.TemporaryDirectory(prefix="spapr-")))
            path, self._monitor = directory / "qtest", directory / "qmp"
            arguments = (*Qtest.arguments(path), "-qmp", f"unix:{self._monitor},server=on,wait=off")
            spec = MachineSpec(accelerator=accelerator, qemu_args=arguments, **shape_for(harness.build, accelerator, onward))
            self._harness, self._onward = harness, onward
            self.machine = PseriesMachine.start(harness, spec, None, Timeline(), boot=False)
            made.callback(self.machine.close)
            self._qtest = made.enter_context(Qtest.at(path))
            # The other QEMU listens at the same place by then.
            self.machine.at_move.append(lambda: self._qtest.reconnect(path))
            self._guest = PlayedGuest(self._qtest)
            slots = self.machine.cores.slots()
            own = slots[0]["type"]
            self.drivers: Mapping[str, str] = {core_type: own} if core_type and core_type != own else {}
            self.facts = Facts(
                core_type=core_type or own,
                cores=len(slots),
                slots=spec.slots,
                features=harness.build.features,
                onward=None if onward is None else onward.features,
            )
            connectors.watch(self.machine)
            self._seen = self.machine.timeline.mark()
            self._resources = made.pop_all()

    def do(self, step: Step, index: int | None) -> Seen:
        refusal = status = count = end = None
        options: tuple[str, ...] = ()
        try:
            match step:
                case Command("system_reset"):
                    self.machine.reset(wait=False)
                case Command():
                    self._execute(self.machine.qmp, step)
                case Aside(command):
                    with self._another_monitor() as monitor:
                        self._execute(monitor, command)
                case Move(stored):
                    # Said also of a move that fails.
                    options = self._devices()
                    with state_file(stored) as file:
                        self.machine.migrate(self._onward, through=file)
                case Call(transition):
                    assert index is not None
                    status = int(self._guest.do(transition, index))
                case OddCall(cells):
                    [status] = self._qtest.rtas("set-indicator", cells)
                case TakeEvents():
                    count = self._qtest.take_events()
            # What the step caused stands before its answer.
            self.machine.qmp.execute("query-status")
        except QmpRefused as error:
            refusal = error.description
        except (MachineDied, DeadlineExpired, EOFError, OSError) as error:
            end = self._end(error)
        except MachineError as error:
            if isinstance(step, Move):
                # The other QEMU did not start or could not take the machine, which is where it was.
                refusal = str(error)
            else:
                end = self._end(error)
        # Also what came between two steps: RCU lets go of things when it likes.
        records = self.machine.timeline.since(self._seen)
        self._seen = records[-1].seq + 1 if records else self._seen
        # Those of a move are another QEMU's, of what the model has.
        attached = () if isinstance(step, Move) else observe.attached(records)
        events = tuple(event for record in records if (event := observe.about_unplug(record)))
        return Seen(refusal=refusal, status=status, count=count, attached=attached, events=events, end=end, options=options)

    def _execute(self, monitor: Qmp, command: Command) -> None:
        own = named(command, self.drivers)
        assert isinstance(own, Command)
        monitor.execute(own.name, own.arguments)

    @contextmanager
    def _another_monitor(self) -> Iterator[Qmp]:
        """Yield a monitor of its own, with a timeline of its own: what the machine's hears stands in the machine's."""
        from pytest_spapr.qemu.qmp import Qmp

        budgets = self._harness.budgets
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(budgets.qmp)
            connection.connect(str(self._monitor))
            ours = connection.dup()
        monitor = Qmp.connect(ours, self._harness.loop, Timeline(), Deadline(budgets.launch), seconds=budgets.qmp)
        try:
            yield monitor
        finally:
            monitor.close()

    def _devices(self) -> tuple[str, ...]:
        """Return what another QEMU must be told of devices to be this machine."""
        records = self.machine.timeline.since(0, Lane.QMP, Lane.EVENT)
        return tuple(word for one in settled(self.machine.qmp, plugged(records)) for word in one.options())

    def settle(self) -> Seen:
        seen = self.do(observe.DRAIN, None)
        return Seen(events=seen.events, end=seen.end)

    def states(self) -> Mapping[int, State]:
        with self._lives():
            state = device_state(self.machine.qmp)
        assert state is not None, "nothing migrates here"
        return drc.connector_states(state)

    def inventory(self) -> frozenset[str]:
        with self._lives():
            return observe.devices(self.machine.qmp)

    def driven(self) -> Driven:
        return connectors.driven(self.machine)

    def write(self, jsonl: Path, text: Path) -> None:
        self.machine.timeline.write(jsonl, text)

    def close(self) -> None:
        self._resources.close()

    @contextmanager
    def _lives(self) -> Iterator[None]:
        try:
            yield
        except (MachineDied, DeadlineExpired) as error:
            raise WorldEnded(self._end(error)) from error

    def _end(self, error: Exception) -> str:
        """Return how QEMU ended, in words that tell one defect from another.

        :raises OSError: it has not, and this host is in the way: no space, or no descriptors.
        """
        if not isinstance(error, (MachineDied, DeadlineExpired)):
            # The connection broke before the process's end was seen.
            try:
                self.machine.qmp.execute("query-status")
            except (MachineDied, DeadlineExpired) as ended:
                error = ended
            else:
                if isinstance(error, OSError) and not isinstance(error, (ConnectionError, TimeoutError)):
                    raise error
        if not isinstance(error, MachineDied):
            return f"QEMU does not answer: {error}"
        said = next((line for line in error.stderr if "ssert" in line or "corrupt" in line or "ERROR" in line), "")
        return f"QEMU {exit_in_words(error.exit_status or 0)}" + (f": {said}" if said else "")


class FirmwareScene:
    """A fresh machine with its history, or two of them with one. :param names: of two builds."""

    def __init__(self, world: World, other: World | None = None, names: tuple[str, str] = ("", "")) -> None:
        self.play = History(world) if other is None else Twins(world, other, names)
        self._worlds = [world] if other is None else [world, other]

    def driven(self) -> Driven:
        return self._worlds[0].driven()

    def write(self, jsonl: Path, text: Path) -> None:
        self._worlds[self.play.broken].write(jsonl, text)

    def close(self) -> None:
        for world in self._worlds:
            world.close()


class FirmwareGround:
    """Fresh machines of one build, or of two that are to do the same.

    :param other: the other one. :param onward: the build that machines move to, if not their own.
    :param forgotten: ids of known defects that are to count as news.
    """

    def __init__(
        self,
        harness: Harness,
        accelerator: str,
        forgotten: Collection[str] = (),
        *,
        other: Harness | None = None,
        onward: QemuBuild | None = None,
    ) -> None:
        self._harness = harness
        self._other = other
        self._onward = onward
        self._accelerator = accelerator
        self._forgotten = frozenset(forgotten)

    def scene(self) -> FirmwareScene:
        world = FirmwareWorld(self._harness, self._accelerator, onward=self._onward)
        if self._other is None:
            return FirmwareScene(world)
        names = self._harness.build.name, self._other.build.name
        return FirmwareScene(world, FirmwareWorld(self._other, self._accelerator, core_type=world.facts.core_type), names)

    def rules(self, source: Source) -> type[RuleBasedStateMachine]:
        # Here, so that whoever only reads what was found needs no hypothesis.
        from pytest_spapr.explore.rules import rules_for

        return rules_for(source)

    def known(self, violation: Violation) -> tuple[str, Avoid] | None:
        builds = (harness.build for harness in (self._harness, self._other) if harness is not None)
        broken = [(build, one) for build, one in zip(builds, violation.twins or (violation,), strict=False) if one is not None]
        found = [self._known_of(build, one) for build, one in broken]
        if violation.defect is None:
            # Where both broke, and not alike, what is known of the one says nothing about the other.
            return found[0] if None not in found else None
        # Nothing is left out for what two builds do alike: there may be a difference behind it.
        return next(filter(None, found), (violation.defect, Avoid.NOTHING))

    def _known_of(self, build: QemuBuild, violation: Violation) -> tuple[str, Avoid] | None:
        """Return the known defect of what broke on machines of a build, or on the one that they had moved to."""
        here = self._onward if self._onward is not None and violation.had_moved else build
        asked = (here, self._onward) if violation.is_of_move else (here,)
        known = (known_defect(violation, one, self._accelerator, self._forgotten) for one in asked if one is not None)
        return next(filter(None, known), None)


def shape_for(build: QemuBuild, accelerator: str, onward: QemuBuild | None = None) -> Mapping[str, Any]:
    """Return what a machine is to be like. :param onward: the build that it is to move to, for which it needs names that last.

    :raises ConfigError: the two builds have no versioned machine type in common.
    """
    if onward is None:
        return SHAPE
    versioned = {name: match[1] for name in build.machines & onward.machines if (match := _VERSIONED.fullmatch(name))}
    if not versioned:
        raise ConfigError(
            f"{build.version_text} and {onward.version_text} have no machine type like pseries-7.2 in common: no machine can move from the "
            "one to the other."
        )
    newest = max(versioned, key=lambda name: [int(part) for part in versioned[name].split(".")])
    # The names without a version mean what each build likes; KVM's model is the host's anyway.
    return {**SHAPE, "machine": newest} | ({"cpu": "power9_v2.0"} if accelerator == "tcg" else {})


def firmware_subject(build: QemuBuild, accelerator: str, onward: QemuBuild | None = None) -> Subject:
    """Return what is explored, for whoever is told of what was found. :param onward: the build that machines move to."""
    shape = shape_for(build, accelerator, onward)
    machine = (*machine_arguments(build, accelerator, shape), "-nodefaults", "-display", "none", "-S")
    return Subject(
        qemu=build.version_text,
        command=build.command,
        machine=machine,
        shape=shape,
        onward=None if onward is None else Onward(onward.name, onward.command, onward.version_text, onward.version),
        accelerator=accelerator,
        version=build.version,
    )


def machine_arguments(build: QemuBuild, accelerator: str, shape: Mapping[str, Any]) -> tuple[str, ...]:
    """Return what says of a machine what it can come to have, for QEMU's command line. :param shape: fields of its ``MachineSpec``."""
    spec = MachineSpec(accelerator=accelerator, **shape)
    return (
        *("-machine", spec.machine, "-accel", "tcg,thread=multi" if accelerator == "tcg" else accelerator),
        *("-cpu", cpu_model(build, spec), "-smp", f"{spec.vcpus},maxcpus={spec.max_cpus}"),
        *("-m", f"{spec.memory}M,slots={spec.slots},maxmem={spec.max_memory}M"),
    )
