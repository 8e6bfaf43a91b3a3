"""The commands that play the battery, with the QEMU and the guest image under test."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path

import pytest

from pytest_spapr import Deadline, GuestImage, QemuBuild
from pytest_spapr.cells import Cell

SPAPR = (sys.executable, "-c", "import sys; from pytest_spapr.cli import main; sys.exit(main())")
QUICK = ("--scenario", "core-boot-core", "--scenario", "dimm-first-lmb")
SECONDS = 300.0


@pytest.fixture
def named(spapr_cell: Cell, qemu_build: QemuBuild, guest_image: GuestImage) -> tuple[str, list[str]]:
    """The build as the command line names it, and the options for the rest. No slot is held: the command needs them."""
    settings = spapr_cell.settings
    options = [f"--image={settings.image.value or guest_image.name}", f"--cache-dir={settings.cache_dir.value}"]
    return settings.qemu.value or qemu_build.name, options


def test_a_sheet_shows_what_the_contract_promises(named: tuple[str, list[str]], tmp_path: Path) -> None:
    qemu, options = named
    command = [*SPAPR, "sheet", f"--qemu={qemu}", *options, *QUICK, f"--output={tmp_path}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS)
    assert done.returncode == 0, done.stderr
    core, dimm = json.loads((tmp_path / "behaviour.json").read_text(encoding="utf-8"))["scenarios"]
    (result,) = core["results"].values()
    assert [one["reply"] for one in result["observations"]] == ["Boot CPU core may not be unplugged"]
    (result,) = dimm["results"].values()
    assert [one["outcome"] for one in result["observations"]] == ["pending", "rejected", "rejected", "removed"]
    assert result["observations"][0]["drcs"] == [["unplug_request", "awaiting_quiesce"]]


def test_a_build_behaves_as_itself(named: tuple[str, list[str]]) -> None:
    qemu, options = named
    done = subprocess.run([*SPAPR, "compare", qemu, qemu, *options, *QUICK], capture_output=True, text=True, timeout=SECONDS)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL], ids=lambda number: number.name)
def test_nothing_is_left_behind(named: tuple[str, list[str]], tmp_path: Path, number: signal.Signals) -> None:
    """Neither its processes nor their machines outlive the command, however it ends."""
    qemu, options = named
    command = [*SPAPR, "sheet", f"--qemu={qemu}", *options, "--scenario=core-outlasted", f"--output={tmp_path}"]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL) as running:
        family = _family_with_qemu(running)
        running.send_signal(number)
        running.wait(timeout=SECONDS)
    # The scenario takes 17 s.
    deadline = Deadline(8)
    while left := [pid for pid in family if _alive(pid)]:
        assert not deadline.expired, left
        _pause()


def test_a_process_that_dies_ends_the_command(named: tuple[str, list[str]], tmp_path: Path) -> None:
    """A scenario that nobody plays any more is not waited for."""
    qemu, options = named
    command = [*SPAPR, "sheet", f"--qemu={qemu}", *options, "--scenario=core-outlasted", f"--output={tmp_path}"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL) as running:
        family = _family_with_qemu(running)
        (worker,) = {_parents()[pid] for pid in family if b"-machine" in _command(pid)}
        os.kill(worker, signal.SIGKILL)
        _, told = running.communicate(timeout=SECONDS)
    assert running.returncode == 2
    assert b"spapr: the process that played core-outlasted ended with status -9" in told


def _family_with_qemu(running: subprocess.Popen[bytes]) -> set[int]:
    """Return the process and its descendants, once a QEMU is among them."""
    deadline = Deadline(SECONDS)
    while True:
        assert running.poll() is None, "the command ended before it had a machine"
        family = _descendants(running.pid)
        if any(b"-machine" in _command(one) for one in family):
            return family
        assert not deadline.expired, f"no QEMU among {family}"
        _pause()


def _pause() -> None:
    """Other processes come and go without an event for us."""
    threading.Event().wait(0.1)


def _descendants(pid: int) -> set[int]:
    parents = _parents()
    family = {pid}
    while more := {child for child, parent in parents.items() if parent in family} - family:
        family |= more
    return family


def _parents() -> dict[int, int]:
    """Return each process's parent."""
    parents: dict[int, int] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            parents[int(stat.parent.name)] = int(stat.read_text(encoding="utf-8").rpartition(")")[2].split()[1])
    return parents


def _command(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
