"""A fake machine with a guest for exploration: each unplug comes out as the contract promises, but for a bug that a test plants."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from hypothesis.stateful import RuleBasedStateMachine

from pytest_spapr.coverage.replay import Driven
from pytest_spapr.explore.guest_play import GuestPlay
from pytest_spapr.explore.guest_rules import guest_rules_for
from pytest_spapr.explore.history import Violation
from pytest_spapr.explore.known import Avoid
from pytest_spapr.explore.search import Source
from pytest_spapr.hotplug.attempt import Attempt, Views
from pytest_spapr.hotplug.contract import Contract
from pytest_spapr.hotplug.cores import Core
from pytest_spapr.hotplug.dimms import Dimm
from pytest_spapr.hotplug.expectation import Expectation
from pytest_spapr.hotplug.nvdimm import Nvdimm
from pytest_spapr.hotplug.outcome import Outcome, Presence
from pytest_spapr.hotplug.pci import PciBridge, PciDevice
from pytest_spapr.hotplug.phb import Phb
from pytest_spapr.timeline import Lane, Timeline

FEATURES = frozenset(
    {
        *(
            "core-refusal-heard",
            "dimm-refusal-heard",
            "dimm-reconfigure-heard",
            "dimm-refusal-doubled",
            "memory-unplug-before-cas",
        ),
        *("repeat-core-announced", "repeat-dimm-rejected", "repeat-pci-rejected", "repeat-phb-rejected"),
        "DEVICE_UNPLUG_GUEST_ERROR",
    }
)
CONTRACT = Contract(FEATURES, "6.1.0", qemu=(11, 1, 3))
PRESENT = Views(Presence.PRESENT, Presence.PRESENT)

#: Changes what comes of an unplug. It is given the machine, and the attempt.
Bug = Callable[["FakeMachine", Attempt], Attempt]


def sound(_: FakeMachine, attempt: Attempt) -> Attempt:
    return attempt


def refuses_dimms_after_a_core(machine: FakeMachine, attempt: Attempt) -> Attempt:
    """No DIMM goes once a core has gone, unless something was pending."""
    goes = attempt.kind == "dimm" and attempt.outcome is Outcome.REMOVED
    if goes and "core" in machine.gone and not machine.play.pending():
        return replace(attempt, outcome=Outcome.REFUSED, views=PRESENT)
    return attempt


def lacks_a_block_of_each_dimm(machine: FakeMachine) -> None:
    """Of each DIMM that is there when all is at rest a block is missing."""
    blocks = machine.guest.memory.blocks
    machine.guest.memory.blocks = lambda: blocks()[machine._count(Dimm) :]


class FakeMachine:
    """:ivar play: the history on it. :ivar gone: the kinds of what was removed."""

    def __init__(
        self, bug: Bug, *, vof: bool = False, version: tuple[int, int, int] = (11, 1, 3), interrupts: str = "XIVE-IRQ"
    ) -> None:
        self.timeline = Timeline()
        self.play: GuestPlay
        self.gone: list[str] = []
        self.bug = bug
        self.attempts: list[Attempt] = []
        self.plugged: list[Any] = []
        self.build = SimpleNamespace(version=version)
        self.spec = SimpleNamespace(accelerator="tcg")
        self.process = SimpleNamespace(argv=("qemu-system-ppc64", "-machine", f"pseries,x-vof={'on' if vof else 'off'}"))
        self.cores = SimpleNamespace(plug=lambda: self._new(Core, (0x10000008,)))
        self.dimms = SimpleNamespace(plug=lambda size, backend: self._new(Dimm, tuple(range(size // 256))))
        self.nvdimms = SimpleNamespace(plug=lambda: self._new(Nvdimm, (0x90000000,)))
        self.pci: Any = SimpleNamespace(
            plug=lambda driver: self._new(PciDevice, (0x40000000,), function=0),
            plug_functions=lambda driver: [self._new(PciDevice, (0x40000000 + n,), function=n) for n in (0, 1)],
            plug_bridge=lambda chassis: self._new(PciBridge, (0x40000000,), function=0, pci=self.pci),
        )
        self.phbs = SimpleNamespace(plug=lambda: self._new(Phb, (0x20000001,), pci=self.pci))
        self.qmp = SimpleNamespace(execute=self._refuse)
        faults = SimpleNamespace(offline=self._fault, offline_refused=self._fault, killed=self._fault, lock_held=self._fault)
        self.guest = SimpleNamespace(
            cpus=SimpleNamespace(offline=self._fault, present=lambda: range(1 + self._count(Core))),
            memory=SimpleNamespace(offline_refused=self._fault, blocks=lambda: range(4 + self._lmbs()), remove=lambda drc: None),
            rtas_errd=faults,
            drmgr=faults,
            read=lambda path: f"24: 4 {interrupts} 4097 Edge RAS_HOTPLUG",
            dmesg=lambda: "\n".join(record.text for record in self.timeline.since(0, Lane.KERNEL)),
        )

    def says(self, text: str) -> None:
        """Have the guest's kernel say something."""
        self.timeline.record(Lane.KERNEL, text)

    def stop(self) -> None: ...

    def cont(self) -> None: ...

    def reset(self) -> None:
        self.timeline.record(Lane.EVENT, "RESET", {"event": "RESET"})

    def reboot(self) -> None: ...

    def panic(self) -> None:
        self.says("Kernel panic - not syncing: sysrq triggered crash")

    def migrate(self, *, through: Path | None) -> None: ...

    def _refuse(self, command: str, arguments: Any = None) -> None:
        from pytest_spapr.errors import QmpRefused

        raise QmpRefused(command, "DeviceNotFound", f"Device '{arguments['id']}' not found")

    @contextmanager
    def _fault(self, *_: object) -> Iterator[None]:
        yield

    def _count(self, kind: type) -> int:
        return sum(isinstance(one, kind) for one in self._devices())

    def _lmbs(self) -> int:
        return sum(len(one.drcs) for one in self._devices() if isinstance(one, Dimm))

    def _devices(self) -> list[Any]:
        """Return what is there; without a history on it, nothing goes."""
        return [held.device for held in self.play.devices.values()] if hasattr(self, "play") else self.plugged

    def _new(self, kind: type[Any], drcs: tuple[int, ...], **attributes: Any) -> Any:
        """Return a device of a class, whose unplugs are what the contract promises."""
        machine = self

        class Fake(kind):  # type: ignore[misc]
            def __init__(self) -> None:
                self.id, self.drcs = f"{kind.kind}1", drcs
                for name, value in attributes.items():
                    setattr(self, name, value)

            def unplug(self, **_: object) -> Attempt:
                held = next(held for held in machine.play.devices.values() if held.device is self)
                bridge = "rejection: bridge" if kind is PciBridge else "repeat while pending"
                kept = "rejection: not supported" if kind is Nvdimm else bridge
                return machine.come(CONTRACT.expect(self.kind, machine.play.situation(held) or kept))

            def follow(self, attempt: Attempt, **_: object) -> Attempt:
                return machine.come(CONTRACT.expect(self.kind, "removal"))

            def views(self) -> Views:
                return PRESENT

        self.plugged.append(Fake())
        return self.plugged[-1]

    def come(self, promised: Expectation) -> Attempt:
        attempt = self.bug(
            self,
            Attempt(
                device=f"{promised.kind}1",
                kind=promised.kind,
                outcome=promised.outcome,
                cause=promised.cause,
                asked=promised.asked,
                reply=promised.reply and promised.reply.replace("{id}", f"{promised.kind}1"),
                events=tuple({"event": rule.name} for rule in promised.events for _ in range(rule.least)),
                evidence=(),
                views=Views(promised.qemu, promised.guest[0]),
                elapsed=0.0,
                began=0,
                ended=0,
                waiting=promised.waiting,
            ),
        )
        if attempt.outcome is Outcome.REMOVED:
            self.gone.append(attempt.kind)
        return attempt


class FakeGuestScene:
    def __init__(
        self, bug: Bug, *, vof: bool = False, version: tuple[int, int, int] = (11, 1, 3), interrupts: str = "XIVE-IRQ"
    ) -> None:
        self.machine = FakeMachine(bug, vof=vof, version=version, interrupts=interrupts)
        machine: Any = self.machine
        self.play = self.machine.play = GuestPlay(machine, CONTRACT)

    def driven(self) -> Driven:
        return {}

    def write(self, jsonl: Path, text: Path) -> None: ...

    def close(self) -> None: ...


class FakeGuestGround:
    """:param lacks: what is wrong with its machines from the begin."""

    def __init__(self, bug: Bug = sound, lacks: Callable[[FakeMachine], None] = lambda _: None) -> None:
        self._bug = bug
        self._lacks = lacks

    def scene(self) -> FakeGuestScene:
        scene = FakeGuestScene(self._bug)
        self._lacks(scene.machine)
        return scene

    def rules(self, source: Source) -> type[RuleBasedStateMachine]:
        return guest_rules_for(source)

    def known(self, _: Violation) -> tuple[str, Avoid] | None:
        return None
