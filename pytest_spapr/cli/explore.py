"""``spapr explore``: random histories on real machines, and what they break."""

from __future__ import annotations

import argparse
import importlib.util
import os
import secrets
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from pytest_spapr.cells import Cell, make_cells
from pytest_spapr.cli.battery import obtain, settings_of
from pytest_spapr.cli.run import Areas, Run, number_of, writable
from pytest_spapr.cli.workers import serve, spread
from pytest_spapr.config import Settings
from pytest_spapr.coverage import connectors
from pytest_spapr.deadline import Deadline
from pytest_spapr.errors import ConfigError
from pytest_spapr.explore import findings
from pytest_spapr.explore.campaign import Campaign
from pytest_spapr.explore.findings import Subject
from pytest_spapr.explore.firmware import SHAPE, FirmwareGround, firmware_subject, machine_arguments
from pytest_spapr.explore.search import SHRINK_SECONDS, Ground, Order, Outcome, play, play_round
from pytest_spapr.explore.shrink import Shrunk
from pytest_spapr.hotplug.defects import KNOWN_DEFECTS
from pytest_spapr.supply import check_named

if TYPE_CHECKING:
    from pytest_spapr.qemu.build import QemuBuild
    from pytest_spapr.slots import Lease

_SOUND, _FOUND = 0, 1
_MINUTES: Final = 5.0
_SEEDS: Final = 1 << 32
_WORKERS: Final = 2
#: Histories of a round: what is learned in it counts from the next one on.
_ROUND, _ROUND_WITH_GUEST = 20, 3


def add(areas: Areas, common: argparse.ArgumentParser) -> None:
    """Add the command ``explore``."""
    parser = areas.add_parser(
        "explore",
        parents=[common],
        help="random histories on real machines, next to a model that says what must hold",
        description="Drive machines through random but legal histories of plugs, unplugs, the guest's calls and resets, hold each step "
        "against a model, and hand back the shortest history that breaks: as a script, as a test, and with its timeline.",
        epilog="Exit status: 0 nothing broke but of known defects, 1 something did, 2 an error.",
    )
    parser.add_argument(
        "--qemu",
        action="append",
        metavar="PATH|NAME",
        help="a QEMU build, as --spapr-qemu names it; two of them, with --no-guest, for what one does and the other does not",
    )
    parser.add_argument(
        "--onward", metavar="PATH|NAME", help="the build that machines migrate to, with --no-guest (default: their own)"
    )
    parser.add_argument("--image", metavar="NAME|DIRECTORY|DISK", help="guest image (default: SPAPR_IMAGE, else debian-12)")
    parser.add_argument(
        "--no-guest", action="store_true", help="without an operating system, whose calls are played: milliseconds a step"
    )
    parser.add_argument(
        "--minutes", type=_minutes, metavar="N", help=f"for how long (default: {_MINUTES:g}, unless --examples is given)"
    )
    parser.add_argument("--examples", type=number_of("histories"), metavar="N", help="how many histories")
    parser.add_argument("--seed", type=int, metavar="S", help="one seed, one row of histories (default: another one each time)")
    parser.add_argument("--guided", action="store_true", help="prefer what leads to DRC transitions that were not reached yet")
    parser.add_argument(
        "--workers", type=number_of("workers"), metavar="N", help="processes (default: one for each CPU, at most two)"
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("artefacts"),
        metavar="DIR",
        help="where a directory with what was found goes (default: artefacts)",
    )
    parser.add_argument(
        "--forget",
        action="append",
        default=[],
        metavar="DEFECT",
        help="take a known defect, see `spapr defects`, for news; may be repeated",
    )
    parser.add_argument("--first", action="store_true", help="end at the first violation")
    parser.add_argument(
        "--shrink",
        type=number_of("seconds"),
        default=int(SHRINK_SECONDS),
        metavar="SECONDS",
        help=f"for making one violation small, at most (default: {SHRINK_SECONDS:g})",
    )
    parser.add_argument("--fresh", action="store_true", help="do not begin with what earlier runs found")
    parser.add_argument("--accel", choices=("tcg", "kvm", "auto"), help="accelerator (default: SPAPR_ACCEL, else auto)")
    parser.set_defaults(run=_explore)


def _minutes(text: str) -> float:
    try:
        minutes = float(text)
    except ValueError:
        minutes = 0.0
    if not 0 < minutes < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is no number of minutes: expected more than 0, e.g. 5 or 0.5")
    return minutes


@dataclass(frozen=True, slots=True)
class _Given:
    """What each process needs."""

    settings: tuple[Settings, ...]
    guest: bool
    forgotten: tuple[str, ...]
    onward: str | None = None


def _explore(run: Run) -> int:
    arguments = run.arguments
    _check(arguments)
    guest = not arguments.no_guest
    settings = settings_of(run, qemu=arguments.qemu, image=arguments.image)
    if len(settings) > (1 if guest else 2):
        raise ConfigError(
            f"{len(settings)} pairs of a QEMU and an image are set, by --qemu, --image, SPAPR_QEMU or SPAPR_IMAGE: expected one, or two "
            "builds with --no-guest."
        )
    if arguments.onward and (guest or len(settings) > 1):
        raise ConfigError("--onward is for one build with --no-guest: its machines move to the other one.")
    directory = writable(arguments.output, "explore")
    cell, *others = obtain(run, settings) if guest else _without_guest(run, settings)
    onward = _onward(cell, arguments.onward)
    # One for each build: what is handed back is about the one that broke.
    subjects = [_subject(one, onward, guest=guest) for one in (cell, *others)]
    subject = subjects[0]
    seed = secrets.randbelow(_SEEDS) if arguments.seed is None else arguments.seed
    seconds = 60 * (arguments.minutes or _MINUTES) if arguments.minutes or arguments.examples is None else float("inf")
    store = directory / "histories" if arguments.fresh else _store(run, (cell, *others), onward, guest=guest)
    campaign = Campaign(seed, Deadline(seconds), arguments.examples, arguments.guided, cell.build().features, store)
    campaign.round = _ROUND_WITH_GUEST if guest else _ROUND
    campaign.first, campaign.shrink = arguments.first, float(arguments.shrink)
    tested = " and ".join(one.qemu for one in subjects)
    tested += "" if onward is None else f", moving to {onward.version_text}"
    tested += f", {subject.accelerator}, {subject.guest or 'no guest'}"
    sys.stderr.write(f"{tested}, seed {seed}\n")
    given = _Given(settings, guest, tuple(arguments.forget), arguments.onward)
    try:
        for number, (order, found) in enumerate(_played(run, campaign, given), start=1):
            origin = (
                "A history of an earlier run." if order.steps is not None else f"Found with seed {seed}, in round {order.number}."
            )
            place = directory / f"violation-{number}"
            text = findings.write(place, found, subjects[found.violation.build], origin)
            _again(given, found, place)
            print(f"violation {number}, {place}:\n  {text}")
    finally:
        # Also after Ctrl-C.
        connectors.write(directory, campaign.driven, f"{tested}, explored")
    return _tell(campaign, directory)


def _without_guest(run: Run, settings: Sequence[Settings]) -> tuple[Cell, ...]:
    cells = make_cells(settings)
    for one, cell in zip(settings, cells, strict=True):
        check_named(one)
        cell.build(run.progress)
    return cells


def _onward(cell: Cell, name: str | None) -> QemuBuild | None:
    """Return the build that machines move to, if one is named."""
    return None if name is None else cell.other_build(name)


def _subject(cell: Cell, onward: QemuBuild | None, *, guest: bool) -> Subject:
    """Return what is explored, for whoever is told of what was found."""
    from pytest_spapr.explore import guest_ground

    without = firmware_subject(cell.build(), cell.accelerator(), onward)
    if not guest:
        return without
    image, shape = cell.image(), {**guest_ground.SHAPE, **_mode(cell.settings)}
    machine = machine_arguments(cell.build(), cell.accelerator(), shape)
    return replace(without, guest=f"{image.name} with Linux {image.kernel_release}", shape=shape, machine=machine)


def _mode(settings: Settings) -> dict[str, Any]:
    """Return what the environment says of a machine with a guest, as of a test's."""
    said = {
        "machine": settings.machine.value,
        "cpu": settings.cpu.value,
        "firmware": settings.firmware.value,
        "kernel_args": tuple((settings.kernel_args.value or "").split()),
    }
    # What is as ever is not worth a word in a test that is pasted.
    return {name: value for name, value in said.items() if value not in (None, "auto", ())}


def _store(run: Run, cells: Sequence[Cell], onward: QemuBuild | None, *, guest: bool) -> Path:
    """Return where what was found with these builds and with this guest is kept for the next run."""
    name = cells[0].image().name if guest else "no-guest"
    builds = [cell.build().sha256[:16] for cell in cells]
    moves = [] if onward is None else ["to", onward.sha256[:16]]
    return run.cache.directory("explore", "-".join((name, *builds, *moves)))


def _check(arguments: argparse.Namespace) -> None:
    if arguments.no_guest and arguments.image:
        raise ConfigError("--image has no meaning with --no-guest: leave out one of them.")
    if arguments.guided and not arguments.no_guest:
        raise ConfigError("--guided is for --no-guest, where the connectors' states are known at each step: give both.")
    if unknown := sorted(set(arguments.forget) - KNOWN_DEFECTS.keys()):
        raise ConfigError(f"--forget={unknown[0]}: no known defect is called so; `spapr defects` lists them.")
    if importlib.util.find_spec("hypothesis") is None:
        raise ConfigError("spapr explore needs hypothesis, which is not installed: pip install 'pytest-spapr[explore]'.")


def _played(run: Run, campaign: Campaign, given: _Given) -> Iterator[tuple[Order, Shrunk]]:
    """Play all rounds and yield what is found."""
    count = run.arguments.workers or min(len(os.sched_getaffinity(0)), _WORKERS)
    began = time.monotonic()
    run.progress.phase("exploring")
    outcomes: Iterator[tuple[Order, Outcome]] = spread(_work, given, count, campaign.orders())
    for order, outcome in outcomes:
        found = campaign.take(outcome)
        seconds = time.monotonic() - began
        done, total = (
            (campaign.histories, campaign.examples) if campaign.examples else (int(seconds), int(campaign.deadline.seconds))
        )
        run.progress.update(done, total, f"{'' if campaign.examples else 's, '}{campaign.in_words(seconds)}")
        if found is not None:
            yield order, found
    run.progress.done()
    print(campaign.in_words(time.monotonic() - began))


def _tell(campaign: Campaign, directory: Path) -> int:
    for text in campaign.skipped:
        sys.stderr.write(f"skipped: {text}\n")
    for name, count in sorted(campaign.defects.items()):
        print(f"known defect {name}: met {count} times, then left out" if name in KNOWN_DEFECTS else f"{name}: {count} times")
    for signature, count in campaign.again.items():
        print(f"again, {count} times: {signature}")
    print(f"what was driven, and what was found: {directory}")
    return _FOUND if campaign.found else _SOUND


def _again(given: _Given, found: Shrunk, place: Path) -> None:
    """Play what was found once more in this process, for its timeline."""
    with _ground(given) as (ground, slots), slots():
        play(found.violation.steps, ground, (place / "timeline.jsonl", place / "timeline.txt"))


@contextmanager
def _ground(given: _Given) -> Iterator[tuple[Ground, Callable[[], Lease]]]:
    """Yield where histories are played, and what waits for the slots that they need, which are given back between rounds."""
    from pytest_spapr.deadline import budgets
    from pytest_spapr.explore import guest_ground
    from pytest_spapr.machine import Harness
    from pytest_spapr.qemu.qmp import QmpLoop
    from pytest_spapr.slots import Slots
    from pytest_spapr.starts import Starter
    from pytest_spapr.supply import supply_contract

    cells = make_cells(given.settings)
    cell, settings = cells[0], given.settings[0]
    accelerator, slots = cell.accelerator(), Slots.of_host()
    with QmpLoop() as loop:
        harness, *others = (Harness(build=one.build(), loop=loop, budgets=budgets(accelerator)) for one in cells)
        if not given.guest:
            weight = slots.weight(len(cells), len(cells) * SHAPE["memory"])
            other = others[0] if others else None
            onward = _onward(cell, given.onward)
            without = FirmwareGround(harness, accelerator, given.forgotten, other=other, onward=onward)
            yield without, partial(slots.take, weight)
            return
        image, starter = cell.image(), Starter(cell.cache(), settings.template_space.value)
        contract = supply_contract(settings, cell.build(), image)
        ground = guest_ground.GuestGround(harness, accelerator, image, starter, contract, given.forgotten, _mode(settings))
        try:
            yield ground, partial(slots.take, slots.weight(1, guest_ground.MEMORY))
        finally:
            starter.close()


def _work(connection: Connection, given: _Given) -> None:
    """Be a worker."""
    with _ground(given) as (ground, slots):

        def act(order: Order) -> Outcome:
            with slots():
                return play_round(order, ground)

        serve(connection, act)
