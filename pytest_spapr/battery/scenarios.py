"""The scenarios: each provokes one thing that can come of an unplug, and sees what helps.

A step has the contract's name for its situation. Where none speaks of it, what was seen is written down all the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from pytest_spapr.battery.provoke import KINDS, SILENCE, plug, silenced
from pytest_spapr.battery.stage import Stage
from pytest_spapr.errors import ConfigError
from pytest_spapr.hotplug.defects import KnownDefect, first_that_applies
from pytest_spapr.hotplug.outcome import Kind, Outcome

if TYPE_CHECKING:
    from pytest_spapr.qemu.build import QemuBuild

#: Longer than any time limit that a QEMU ever had for an unplug: 15 s, and what a host may be late by.
_OUTLASTS: Final = 17.0
_CORE_MIGRATION: Final = ("tcg-smp-migration", "tcg-pending-core-migration")


@dataclass(frozen=True, kw_only=True, slots=True)
class Scenario:
    """One thing to provoke.

    :ivar name: unique, e.g. ``dimm-later-lmb``. :ivar title: the same in words. :ivar play: does it.
    :ivar boots: whether its guest is to be up; else the machine stands before its first instruction.
    :ivar shape: what its machine has other than a test's default, as in ``MachineSpec``.
    :ivar prevented: the known defects that keep it from its end: it is not played where one of them applies.
    """

    name: str
    title: str
    kind: Kind
    play: Callable[[Stage], None]
    boots: bool = True
    shape: Mapping[str, Any] = field(default_factory=dict)
    prevented: tuple[str, ...] = ()

    def prevented_by(self, build: QemuBuild, accelerator: str, kernel: str | None) -> KnownDefect | None:
        """Return the known defect for which it is not played on such machines; None where it can be."""
        return first_that_applies(self.prevented, build, accelerator, kernel)


def chosen(names: Iterable[str]) -> tuple[Scenario, ...]:
    """Return the scenarios of these names, in the battery's order; a kind stands for all of its scenarios; all of them for no name.

    :raises ConfigError: there is none of a name; the message lists those there are.
    """
    wanted = set(names)
    known = {scenario.name for scenario in SCENARIOS} | {str(scenario.kind) for scenario in SCENARIOS}
    if unknown := sorted(wanted - known):
        raise ConfigError(
            f"no scenario is called {unknown[0]!r}; there are {', '.join(scenario.name for scenario in SCENARIOS)}."
        )
    return tuple(one for one in SCENARIOS if not wanted or one.name in wanted or str(one.kind) in wanted)


def named(name: str) -> Scenario:
    """Return the scenario of this name, which is one of the battery's."""
    return next(one for one in SCENARIOS if one.name == name)


def _removal(stage: Stage, kind: Kind) -> None:
    stage.unplug(plug(stage.machine, kind), "removal")


def _before_boot(stage: Stage, kind: Kind) -> None:
    stage.unplug(plug(stage.machine, kind), "before the first boot")


def _unconfigured(stage: Stage, kind: Kind) -> None:
    with stage.machine.paused():
        stage.unplug(plug(stage.machine, kind, wait=False), "removal: never configured")


def _paused(stage: Stage, kind: Kind) -> None:
    device = plug(stage.machine, kind)
    with stage.machine.paused():
        attempt = stage.unplug(device, "silence: machine paused")
        stage.unplug(device, "repeat while pending", step="repeat")
    stage.follow(device, attempt, "after: resume", step="machine runs on")


def _reset(stage: Stage, kind: Kind) -> None:
    machine = stage.machine
    device = plug(machine, kind)
    with silenced(machine, kind):
        attempt = stage.unplug(device, f"silence: {SILENCE[kind]}")
        since = machine.timeline.mark()
        machine.reset(wait=False)
    machine.await_ready(since)
    stage.follow(device, attempt, "after: reset", step="machine reset")


def _migration(stage: Stage, kind: Kind) -> None:
    machine = stage.machine
    device = plug(machine, kind)
    with silenced(machine, kind):
        attempt = stage.unplug(device, f"silence: {SILENCE[kind]}")
        machine.migrate()
        stage.unplug(device, "repeat after migration", step="repeat")
    if kind is Kind.DIMM:
        stage.guest.memory.remove(device.drcs[0])
    stage.follow(device, attempt, "after: migration", step="the guest can, on the destination")


def _firmware(stage: Stage, kind: Kind) -> None:
    machine = stage.machine
    device = plug(machine, kind)
    with machine.paused():
        since = machine.timeline.mark()
        machine.reset(wait=False)
        attempt = stage.unplug(device, "before CAS")
    machine.await_ready(since)
    stage.follow(device, attempt, "after: CAS", step="boot of the guest")


def _boot_core(stage: Stage) -> None:
    stage.unplug(stage.machine.cores.boot_core(), "rejection: boot core")


def _last_cpu(stage: Stage) -> None:
    core = plug(stage.machine, Kind.CORE)
    situation = "refusal: last online CPU"
    with stage.guest.cpus.offline(0):
        told = stage.unplug(core, situation).outcome is Outcome.REFUSED
        stage.unplug(core, situation if told else None, step="repeat")
    stage.unplug(core, "retry: last online CPU", step="retry when the guest can")


def _core_outlasted(stage: Stage) -> None:
    core = plug(stage.machine, Kind.CORE)
    with stage.guest.cpus.offline(0):
        attempt = stage.unplug(core, "refusal: last online CPU")
        stage.outlast(core, attempt, _OUTLASTS, "outlasted: last online CPU", step="17 s later")


def _first_lmb(stage: Stage) -> None:
    dimm = stage.machine.dimms.plug()
    with stage.guest.memory.offline_refused():
        attempt = stage.unplug(dimm, "silence: first LMB refused")
        stage.unplug(dimm, "repeat while pending", step="repeat")
    stage.unplug(dimm, "retry: first LMB refused", step="retry when the guest can")
    stage.guest.memory.remove(dimm.drcs[0])
    stage.follow(dimm, attempt, "removal", step="guest removes it by itself")


def _later_lmb(stage: Stage) -> None:
    dimm = stage.machine.dimms.plug(512)
    with stage.guest.memory.offline_refused(after=dimm.blocks[:1]):
        stage.unplug(dimm, "refusal: later LMB")
    stage.unplug(dimm, "retry: later LMB", step="retry when the guest can")


def _boot_memory(stage: Stage) -> None:
    dimm = stage.machine.dimms.plug()
    stage.machine.reset()
    stage.unplug(dimm, "silence: memory of the boot")


def _outlasted(stage: Stage, kind: Kind) -> None:
    device = plug(stage.machine, kind)
    with silenced(stage.machine, kind):
        attempt = stage.unplug(device, f"silence: {SILENCE[kind]}")
        stage.outlast(device, attempt, _OUTLASTS, f"outlasted: {SILENCE[kind]}", step="17 s later")


def _several_lmbs(stage: Stage) -> None:
    stage.unplug(stage.machine.dimms.plug(768), "removal")


def _errd_absent(stage: Stage, kind: Kind) -> None:
    device = plug(stage.machine, kind)
    with stage.guest.rtas_errd.killed():
        attempt = stage.unplug(device, "silence: rtas_errd absent")
        stage.unplug(device, "repeat while pending", step="repeat")
    stage.follow(device, attempt, "removal", step="rtas_errd is back")


def _drmgr_locked(stage: Stage, kind: Kind) -> None:
    device = plug(stage.machine, kind)
    with stage.guest.drmgr.lock_held():
        attempt = stage.unplug(device, "silence: drmgr locked")
        stage.unplug(device, "repeat while pending", step="repeat")
    stage.unplug(device, "retry: drmgr locked", step="retry when the guest can")
    remove = stage.guest.drmgr.remove_phb if kind is Kind.PHB else stage.guest.drmgr.remove
    remove(device.drcs[0])
    stage.follow(device, attempt, "removal", step="drmgr by hand")


def _drmgr_killed(stage: Stage) -> None:
    card = stage.machine.pci.plug("virtio-rng-pci")
    stage.guest.drmgr.kill_midway(card.address)
    attempt = stage.unplug(card, "silence: drmgr killed")
    stage.guest.drmgr.remove(card.drcs[0])
    stage.follow(card, attempt, "removal", step="drmgr by hand")


def _bridge(stage: Stage) -> None:
    stage.unplug(stage.machine.pci.plug("pci-bridge", chassis_nr=1), "rejection: bridge")


def _function_0(stage: Stage) -> None:
    stage.unplug(stage.machine.pci.plug_functions("virtio-rng-pci")[0], "removal")


def _function_1(stage: Stage) -> None:
    zero, one = stage.machine.pci.plug_functions("virtio-rng-pci")
    attempt = stage.unplug(one, "silence: function 0 stays")
    stage.unplug(one, "repeat while pending", step="repeat")
    stage.unplug(zero, "removal", step="function 0 too")
    stage.follow(one, attempt, "removal", step="and so function 1")


def _phb_with_card(stage: Stage) -> None:
    phb = stage.machine.phbs.plug()
    phb.pci.plug("virtio-rng-pci")
    stage.unplug(phb, "removal")


def _nvdimm(stage: Stage) -> None:
    stage.unplug(plug(stage.machine, Kind.NVDIMM), "rejection: not supported")


def _of(kind: Kind, name: str, title: str, play: Callable[[Stage, Kind], None], **given: Any) -> Scenario:
    """Return the scenario of a play that several kinds have. :param given: more of the scenario."""
    return Scenario(name=f"{kind}-{name}", title=title, kind=kind, play=lambda stage: play(stage, kind), **given)


def _of_each_kind() -> Iterator[Scenario]:
    for kind in KINDS:
        yield _of(kind, "removal", "the guest gives it up", _removal)
        yield _of(kind, "unconfigured", "the guest never had it", _unconfigured)
        yield _of(kind, "paused", "the machine is paused", _paused)
        yield _of(kind, "reset", f"a reset while it is pending ({SILENCE[kind]})", _reset)
        prevented = _CORE_MIGRATION if kind is Kind.CORE else ()
        yield _of(kind, "migration", f"a migration while it is pending ({SILENCE[kind]})", _migration, prevented=prevented)
        yield _of(kind, "firmware", "the firmware has the machine", _firmware)
    for kind in Kind:
        yield _of(kind, "before-boot", "no guest has ever run", _before_boot, boots=False)


def _others() -> Iterator[Scenario]:
    yield Scenario(name="core-boot-core", title="the boot core", kind=Kind.CORE, play=_boot_core)
    yield Scenario(name="core-last-cpu", title="the last CPU that is online", kind=Kind.CORE, play=_last_cpu)
    yield Scenario(name="core-outlasted", title="time passes over a refusal", kind=Kind.CORE, play=_core_outlasted)
    yield Scenario(name="dimm-several-lmbs", title="three LMBs, all given up", kind=Kind.DIMM, play=_several_lmbs)
    yield Scenario(name="dimm-first-lmb", title="the first LMB is refused", kind=Kind.DIMM, play=_first_lmb)
    yield Scenario(name="dimm-later-lmb", title="the second of two LMBs is refused", kind=Kind.DIMM, play=_later_lmb)
    yield Scenario(name="dimm-boot-memory", title="memory that the kernel found at boot", kind=Kind.DIMM, play=_boot_memory)
    yield _of(Kind.DIMM, "outlasted", "time passes over a silence", _outlasted)
    yield Scenario(name="pci-bridge", title="a PCI bridge", kind=Kind.PCI, play=_bridge)
    yield Scenario(name="pci-function-0", title="function 0 of two", kind=Kind.PCI, play=_function_0)
    yield Scenario(name="pci-function-1", title="function 1 of two, then function 0", kind=Kind.PCI, play=_function_1)
    yield _of(Kind.PCI, "outlasted", "time passes over a silence", _outlasted)
    for kind in (Kind.PCI, Kind.PHB):
        yield _of(kind, "errd-absent", "rtas_errd is gone for a while", _errd_absent)
        yield _of(kind, "drmgr-locked", "drmgr does not get its lock", _drmgr_locked)
    yield Scenario(name="pci-drmgr-killed", title="drmgr is killed at its work", kind=Kind.PCI, play=_drmgr_killed)
    yield Scenario(name="phb-with-card", title="with a card behind it", kind=Kind.PHB, play=_phb_with_card)
    yield Scenario(name="nvdimm-running", title="the guest runs", kind=Kind.NVDIMM, play=_nvdimm)


#: All scenarios, by kind.
SCENARIOS: Final = tuple(sorted((*_of_each_kind(), *_others()), key=lambda scenario: list(Kind).index(scenario.kind)))
