"""``spapr boot``: a machine for a person."""

from __future__ import annotations

import argparse
import subprocess
import sys
import textwrap
import threading
from typing import Any, Final

from pytest_spapr.cells import Cell, make_cells
from pytest_spapr.cli.battery import obtain, settings_of
from pytest_spapr.cli.run import Areas, Run
from pytest_spapr.cli.terminal import Terminal, require_typing, terminal
from pytest_spapr.config import Settings
from pytest_spapr.deadline import Deadline
from pytest_spapr.errors import ConfigError, MachineDied, SpaprError
from pytest_spapr.interactive.lines import HELP
from pytest_spapr.interactive.session import Session, heard
from pytest_spapr.interactive.start import machine_of
from pytest_spapr.live import ways_in
from pytest_spapr.supply import check_named
from pytest_spapr.timeline import Record, Timeline

_NUMBERS: Final = ("cpus", "max_cpus", "threads", "memory", "max_memory", "slots", "numa")
_NAMES: Final = ("machine", "cpu", "firmware")


def add(areas: Areas, common: argparse.ArgumentParser) -> None:
    """Add the command ``boot``."""
    parser = areas.add_parser(
        "boot",
        parents=[common],
        formatter_class=argparse.RawDescriptionHelpFormatter,
        help="a machine for a person: its monitor, its guest and their consoles in one terminal",
        description="Start a machine with a guest, or a clone of one, and stay at it until you leave. What the guest and QEMU say comes "
        "as they say it.\nWhat can be typed, or piped in:\n\n" + textwrap.indent(HELP, "  "),
        epilog="Exit status: 0, or 1 where a line that was piped in failed; 2 where QEMU died, or for an error.",
    )
    parser.add_argument("image", nargs="?", metavar="IMAGE", help="guest image (default: SPAPR_IMAGE, else debian-12)")
    parser.add_argument("--qemu", metavar="PATH|NAME", help="QEMU, as --spapr-qemu names it (default: SPAPR_QEMU)")
    parser.add_argument("--no-guest", action="store_true", help="without a guest, before the first instruction: `cont` goes on")
    parser.add_argument("--start", choices=("clone", "boot"), help="how it is started (default: SPAPR_START, else clone)")
    parser.add_argument("--accel", choices=("tcg", "kvm", "auto"), help="accelerator (default: SPAPR_ACCEL, else auto)")
    parser.add_argument("--kernel", metavar="VMLINUX", help="boot this kernel instead of the image's")
    parser.add_argument(
        "--modules", metavar="DIR", help="its modules, as `make modules_install INSTALL_MOD_PATH=DIR` leaves them"
    )
    shape = parser.add_argument_group("the machine, as @pytest.mark.spapr shapes it; sizes in MiB")
    for name in _NUMBERS:
        shape.add_argument(f"--{name.replace('_', '-')}", type=int, metavar="N")
    shape.add_argument("--machine", metavar="TYPE[,PROPERTY=VALUE...]")
    shape.add_argument("--cpu", metavar="MODEL")
    shape.add_argument("--firmware", choices=("auto", "vof", "slof"))
    shape.add_argument("--kernel-args", metavar="ARGS", help="more of the kernel's command line")
    shape.add_argument("--qemu-arg", action="append", default=[], metavar="WORD", help="one more of QEMU's arguments; repeatable")
    parser.set_defaults(run=_boot)


def _boot(run: Run) -> int:
    arguments = run.arguments
    require_typing()
    guest = not arguments.no_guest
    cell = _cell(run, guest=guest)
    timeline, shown = Timeline(), threading.Event()
    timeline.listen(lambda record: _show(record) if shown.is_set() else None)
    if not guest or cell.settings.start.value == "boot":
        # How a clone gets its state is no news.
        shown.set()
    with machine_of(cell, _shape(arguments, cell.settings, guest=guest), timeline, run.progress, guest=guest) as machine:
        shown.set()
        session = Session(machine, _login)
        print("\n".join([cell.facts(), *ways_in(machine), ".help tells what can be typed"]), flush=True)
        with terminal(session.words) as where:
            threading.Thread(target=_watch, args=(timeline, where), name="spapr-terminal", daemon=True).start()
            failed = _talk(session, where, timeline)
        # What QEMU does from here on is on our behalf.
        shown.clear()
        died = timeline.ended
    if isinstance(died, MachineDied) and died.exit_status:
        raise died
    return 1 if failed and not sys.stdin.isatty() else 0


def _cell(run: Run, *, guest: bool) -> Cell:
    arguments = run.arguments
    if not guest and arguments.image:
        raise ConfigError("an image has no meaning with --no-guest: leave out one of them.")
    given = {name: vars(arguments)[name] for name in ("qemu", "image", "kernel", "modules")}
    settings = settings_of(run, **given)
    if len(settings) > 1:
        raise ConfigError(
            "several QEMU builds or images are set, by SPAPR_QEMU or SPAPR_IMAGE: name one of each, with --qemu and IMAGE."
        )
    if guest:
        return obtain(run, settings)[0]
    check_named(settings[0])
    (cell,) = make_cells(settings)
    cell.build(run.progress)
    run.progress.done()
    return cell


def _shape(arguments: argparse.Namespace, settings: Settings, *, guest: bool) -> dict[str, Any]:
    """Return the machine that the command line and the settings describe, as of ``MachineSpec``."""
    common: dict[str, Any] = {"machine": settings.machine.value, "cpu": settings.cpu.value}
    if guest:
        # VOF without a kernel stops the machine.
        common["firmware"] = settings.firmware.value
    given = {name: vars(arguments)[name] for name in (*_NUMBERS, *_NAMES)}
    shape = {name: value for name, value in common.items() if value is not None}
    shape |= {name: value for name, value in given.items() if value is not None}
    words = f"{settings.kernel_args.value or ''} {arguments.kernel_args or ''}".split()
    return {**shape, "kernel_args": tuple(words), "qemu_args": tuple(arguments.qemu_arg)}


def _talk(session: Session, where: Terminal, timeline: Timeline) -> int:
    """Do what is typed until there is no more, or no machine; return how many lines failed."""
    failed = 0
    while not session.over and timeline.ended is None:
        try:
            for line in session.do(where.read()):
                print(line, flush=True)
        except KeyboardInterrupt:
            # Of a line, or of waiting for the guest.
            continue
        except EOFError:
            break
        except SpaprError as error:
            failed += 1
            print(f"error: {error}", flush=True)
    return failed


def _show(record: Record) -> None:
    line = heard(record)
    if line is not None:
        print(line, flush=True)


def _watch(timeline: Timeline, where: Terminal) -> None:
    """Hang up when the machine has ended."""
    try:
        timeline.wait(lambda _: None, since=timeline.mark(), deadline=Deadline(threading.TIMEOUT_MAX / 2), what="QEMU's end")
    except SpaprError:
        where.hang_up()


def _login(command: list[str]) -> None:
    if not sys.stdin.isatty():
        raise ConfigError("only a person can log in: lines that are piped in run commands in the guest with !COMMAND")
    subprocess.call(command)
