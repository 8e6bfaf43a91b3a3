"""A kept command: what is told of it, and that nothing is left of it, whoever is killed."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from pytest_spapr.avocado.kept import KeeperDied, Kept, new_scratch, sweep

_SECONDS = 20.0
#: Makes a process that leaves it for a session of its own and says both pids. It does {first} before, and {then} after it.
_FAMILY = """
import os, signal, sys
{first}
heard, said = os.pipe()
if os.fork() == 0:
    os.setsid()
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    with open(sys.argv[1], "w") as told:
        told.write(f"{{os.getppid()}} {{os.getpid()}}\\n")
    os.write(said, b".")
    signal.pause()
os.read(heard, 1)
{then}
while True:
    signal.pause()
"""
_STUBBORN = "signal.signal(signal.SIGTERM, signal.SIG_IGN)"


@pytest.fixture(autouse=True)
def scratch_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    home = tmp_path / "scratch"
    home.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(home))
    return home


class Family:
    """A kept command with a child in a session of its own. :ivar processes: descriptors of both."""

    def __init__(self, tmp_path: Path, made: ExitStack, *, first: str = "", then: str = "") -> None:
        self.told = tmp_path / "told"
        os.mkfifo(self.told)
        self.command = [sys.executable, "-c", _FAMILY.format(first=first, then=then), str(self.told)]
        self._made = made
        self.processes: list[int] = []

    def arrived(self) -> None:
        """Wait until both run."""
        with self.told.open() as told:
            pids = told.read().split()
        for pid in pids:
            # One that has ended already is gone.
            with suppress(ProcessLookupError):
                self.processes.append(os.pidfd_open(int(pid)))
        for descriptor in self.processes:
            self._made.callback(os.close, descriptor)

    def gone(self) -> bool:
        # A descriptor of a process is readable when that has ended.
        return all(select.select([one], [], [], _SECONDS)[0] for one in self.processes)


@pytest.fixture
def made() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def keep(command: list[str], tmp_path: Path, seconds: float = _SECONDS) -> Kept:
    return Kept(command, new_scratch(), tmp_path / "log", seconds)


@pytest.mark.parametrize(("code", "status"), [("pass", 0), ("raise SystemExit(5)", 5), ("import os; os.abort()", -6)])
def test_the_status_is_the_commands(tmp_path: Path, scratch_home: Path, code: str, status: int) -> None:
    with keep([sys.executable, "-c", f"print('said', flush=True); {code}"], tmp_path) as one:
        assert one.ended(_SECONDS)
        assert one.status() == status
        assert len(list(scratch_home.iterdir())) == 1
    assert (tmp_path / "log").read_text() == "said\n"
    assert list(scratch_home.iterdir()) == []


def test_a_command_that_ends_leaves_none_of_its_processes(tmp_path: Path, made: ExitStack) -> None:
    family = Family(tmp_path, made, then="raise SystemExit")
    with keep(family.command, tmp_path) as one:
        family.arrived()
        assert one.status() == 0
        assert family.gone()


@pytest.mark.parametrize(("first", "status"), [("", -signal.SIGTERM), (_STUBBORN, -signal.SIGKILL)])
def test_a_command_that_is_given_up_has_some_time_to_end(tmp_path: Path, made: ExitStack, first: str, status: int) -> None:
    family = Family(tmp_path, made, first=first)
    with keep(family.command, tmp_path, seconds=_SECONDS if not first else 0.2) as one:
        family.arrived()
        assert not one.ended(0)
        one.give_up()
        one.give_up()
        assert one.status() == status
        assert family.gone()


def test_the_end_of_the_block_gives_the_command_up(tmp_path: Path, made: ExitStack, scratch_home: Path) -> None:
    family = Family(tmp_path, made)
    with keep(family.command, tmp_path):
        family.arrived()
    assert family.gone()
    assert list(scratch_home.iterdir()) == []


def test_nothing_is_left_of_an_owner_that_is_killed(tmp_path: Path, made: ExitStack, scratch_home: Path) -> None:
    family = Family(tmp_path, made)
    code = f"""
import signal, sys, tempfile
tempfile.tempdir = {str(scratch_home)!r}
from pathlib import Path
from pytest_spapr.avocado.kept import Kept, new_scratch
with Kept({family.command!r}, new_scratch(), Path({str(tmp_path / "log")!r}), 20.0):
    signal.pause()
"""
    with subprocess.Popen([sys.executable, "-c", code]) as owner:
        family.arrived()
        (scratch,) = scratch_home.iterdir()
        keeper = os.pidfd_open(int(Path(f"/proc/{owner.pid}/task/{owner.pid}/children").read_text()))
        made.callback(os.close, keeper)
        owner.kill()
    assert family.gone()
    assert select.select([keeper], [], [], _SECONDS)[0]
    assert not scratch.exists()


def test_a_keeper_that_is_killed_takes_the_command_along(tmp_path: Path, made: ExitStack, scratch_home: Path) -> None:
    family = Family(tmp_path, made)
    with keep(family.command, tmp_path) as one:
        family.arrived()
        one._keeper.kill()
        with pytest.raises(KeeperDied, match="was killed, and the command with it"):
            one.status()
        # The one in a session of its own is QEMU's part, which binds itself to who started it.
        assert select.select([family.processes[0]], [], [], _SECONDS)[0]
        signal.pidfd_send_signal(family.processes[1], signal.SIGKILL)
    assert list(scratch_home.iterdir()) == []


def test_what_was_left_is_swept_unless_its_owner_lives(scratch_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def nameless(_: Path) -> str:
        raise KeyError("getpwuid(): uid not found")

    # As for a user of a container, of whom /etc/passwd has nothing.
    monkeypatch.setattr(Path, "owner", nameless)
    with subprocess.Popen([sys.executable, "-c", ""]) as ended:
        ended.wait()
    for name in (f"spapr-night-{ended.pid}-a", f"spapr-night-{os.getpid()}-b", "spapr-night-x", "other"):
        (scratch_home / name / "deep").mkdir(parents=True)
    sweep()
    assert {path.name for path in scratch_home.iterdir()} == {f"spapr-night-{os.getpid()}-b", "spapr-night-x", "other"}
