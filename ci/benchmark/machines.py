"""What is measured of machines: how they start, what scenarios cost, what memory they take."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from statistics import median
from typing import Final

from ci.benchmark import memory
from ci.benchmark.subject import Start, Subject, WrongOutcome, require
from pytest_spapr.ahead import Ahead
from pytest_spapr.guest.services import DRMGR_BEGAN, DRMGR_ENDED
from pytest_spapr.hotplug.attempt import Attempt
from pytest_spapr.hotplug.device import Device
from pytest_spapr.hotplug.outcome import Kind
from pytest_spapr.hotplug.pseries import PseriesMachine
from pytest_spapr.timeline import Lane, Timeline

#: Values by measure.
Values = Iterable[tuple[str, float]]

#: How many clones run at the same time when their memory is looked at.
_COUNTS: Final = (1, 4, 8)
# A clone costs little, and is what all else is compared with.
_CLONES: Final = 3
_MEGABYTE: Final = 1e6


@dataclass(frozen=True, slots=True)
class Job:
    """One measurement. :ivar measure: does it once. :ivar keys: begin the names of its measures.
    :ivar seconds: what it takes on an idle host under TCG. :ivar lacks: why a subject cannot have it, if so.
    """

    title: str
    keys: tuple[str, ...]
    seconds: float
    measure: Callable[[Subject], Values]
    lacks: Callable[[Subject], str | None] = lambda _: None


def _started(key: str, start: Callable[[Subject], Start], times: int = 1) -> Callable[[Subject], Values]:
    """Return the measurement of one way to start a machine: until its guest is up, and until the first answer by ssh."""

    def measure(subject: Subject) -> Values:
        for _ in range(times):
            with subject.running(start(subject)) as running:
                running.machine.guest.run("true").check()
                answered = time.monotonic() - running.began
            yield f"{key}_running", running.seconds
            yield f"{key}_ssh", answered

    return measure


def _from_file(subject: Subject) -> Start:
    subject.migration_file()
    return subject.restored


def _ahead(subject: Subject) -> Values:
    """What tests wait for whose machines are prepared while the test before runs: one of each kind of device, one after the other."""
    with ExitStack() as ended:
        ahead = Ahead(subject.starter, subject.harness, subject.slots)
        ended.callback(ahead.drop)
        running = ended.enter_context(ExitStack())
        machine = running.enter_context(subject.running(subject.clone)).machine
        for kind in Kind:
            ahead.prepare(subject.spec, subject.image)
            _comes_and_goes(subject, machine, kind)
            running.close()
            running.enter_context(subject.slot())
            began = time.monotonic()
            machine = ahead.take(subject.spec, subject.image) or _unprepared(subject)
            subject.started.append(machine)
            running.callback(machine.close)
            machine.guest.run("true").check()
            seconds = time.monotonic() - began
            yield "ahead_ssh", seconds
            yield f"ahead_{kind}", seconds


def _unprepared(subject: Subject) -> PseriesMachine:
    """Start what was not prepared, as a test does, who waits for it: other runs had all slots."""
    notes = subject.figures.notes
    notes["not_prepared"] = notes.get("not_prepared", 0) + 1
    return subject.clone(Timeline())


def _core_cycle(subject: Subject) -> Values:
    with subject.running(subject.clone) as running:
        began = time.monotonic()
        _comes_and_goes(subject, running.machine)
        yield "core_cycle", time.monotonic() - began


def _comes_and_goes(subject: Subject, machine: PseriesMachine, kind: Kind = Kind.CORE) -> None:
    device: Device
    match kind:
        case Kind.CORE:
            device = machine.cores.plug()
        case Kind.DIMM:
            device = machine.dimms.plug()
        case Kind.PCI:
            device = machine.pci.plug("virtio-rng-pci")
    require(device.unplug(), subject.contract.removal(device))


def _core_refused(subject: Subject) -> Values:
    with subject.running(subject.clone) as running:
        core = running.machine.cores.plug()
        with running.machine.guest.cpus.offline(0):
            began = time.monotonic()
            attempt = core.unplug()
            yield "core_refused", time.monotonic() - began
            require(attempt, subject.contract.refusal(core, cause="last online CPU"))


def _dimm_silent(subject: Subject) -> Values:
    with subject.running(subject.clone) as running:
        dimm = running.machine.dimms.plug()
        with running.machine.guest.memory.offline_refused():
            began = time.monotonic()
            attempt = dimm.unplug()
            yield "dimm_silent", time.monotonic() - began
            require(attempt, subject.contract.silence(dimm, cause="first LMB refused"))


def _pci(subject: Subject) -> Values:
    with subject.running(subject.clone) as running:
        device = running.machine.pci.plug("virtio-rng-pci")
        began = time.monotonic()
        attempt = device.unplug()
        seconds = time.monotonic() - began
        require(attempt, subject.contract.removal(device))
        own = drmgr_seconds(running.machine, attempt)
    yield "pci_removal", seconds
    yield "pci_drmgr", own
    yield "pci_rest", seconds - own


def drmgr_seconds(machine: PseriesMachine, attempt: Attempt) -> float:
    """Return how long the guest's drmgr was at work for an attempt. :raises WrongOutcome: it did not run once."""
    said = machine.timeline.since(attempt.began, Lane.SERVICE)
    began = [record.time for record in said if DRMGR_BEGAN.match(record.text)]
    ended = [record.time for record in said if DRMGR_ENDED.match(record.text)]
    if len(began) != 1 or len(ended) != 1:
        raise WrongOutcome(f"drmgr began {len(began)} and ended {len(ended)} times for one removal")
    return ended[0] - began[0]


def _reset(subject: Subject) -> Values:
    with subject.running(subject.clone) as running:
        guest = running.machine.guest
        guest.run("echo old > /tmp/note").check()
        began = time.monotonic()
        running.machine.reset()
        seconds = time.monotonic() - began
        if guest.run("test -e /tmp/note").status == 0:
            raise WrongOutcome("the guest kept a file over a reset: it was not reset")
        yield "reset", seconds


def _memory(subject: Subject) -> Values:
    """Private memory of each of several clones that run at the same time, in the middle."""
    clones: list[PseriesMachine] = []
    with ExitStack() as ended:
        while len(clones) < max(_COUNTS):
            machine = ended.enter_context(subject.running(subject.clone)).machine
            machine.guest.run("true").check()
            clones.append(machine)
            if len(clones) in _COUNTS:
                yield f"private_{len(clones)}", _private(clones)
        for machine in clones:
            _comes_and_goes(subject, machine)
        yield f"used_{len(clones)}", _private(clones)


def _private(clones: list[PseriesMachine]) -> float:
    return median(memory.private(clone.process.pid) for clone in clones) / _MEGABYTE


def _no_vof(subject: Subject) -> str | None:
    return None if "x-vof" in subject.build.features else "this build has no Virtual Open Firmware"


def _no_room(_: Subject) -> str | None:
    return memory.too_little_for(max(_COUNTS))


def _scenarios() -> Iterator[Job]:
    yield Job("core added and removed", ("core_cycle",), 1, _core_cycle)
    yield Job("core refused", ("core_refused",), 1, _core_refused)
    yield Job("DIMM refused in silence", ("dimm_silent",), 1, _dimm_silent)
    yield Job("PCI device removed", ("pci_removal", "pci_drmgr", "pci_rest"), 5, _pci)
    yield Job("reset", ("reset",), 3.5, _reset)


#: In the order of a round.
JOBS: Final = (
    Job("cold boot, SLOF", ("slof_running", "slof_ssh"), 9.5, _started("slof", lambda subject: subject.boot("slof"))),
    Job("clone", ("clone_running", "clone_ssh"), 1.5, _started("clone", lambda subject: subject.clone, _CLONES)),
    Job("cold boot, VOF", ("vof_running", "vof_ssh"), 3.5, _started("vof", lambda subject: subject.boot("vof")), _no_vof),
    Job("restore from a migration file", ("file_running", "file_ssh"), 1, _started("file", _from_file)),
    Job("clone prepared ahead", ("ahead_",), 7.5, _ahead),
    *_scenarios(),
    Job("private memory of clones", ("private_", "used_"), 7, _memory, _no_room),
)
