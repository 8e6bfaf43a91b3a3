"""The second monitor's socket: where it is, and that none is left."""

from __future__ import annotations

import os
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from pytest_spapr.errors import ConfigError
from pytest_spapr.qemu.backdoor import Backdoor

_OLD = SimpleNamespace(features=frozenset({"query-status"}))
_NEW = SimpleNamespace(features=frozenset({"query-status", "monitor-qmp"}))


@pytest.fixture(autouse=True)
def directory(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="spapr,") as short:
        monkeypatch.setattr(tempfile, "tempdir", short)
        yield Path(short)


def test_each_is_another_socket_of_this_users_own(directory: Path) -> None:
    one, other = Backdoor.new(_OLD), Backdoor.new(_OLD)
    assert one.path != other.path
    assert one.path.parent == directory / f"pytest-spapr-{os.getuid()}"
    assert one.path.parent.stat().st_mode & 0o777 == 0o700
    comma = str(one.path).replace(",", ",,")
    chardev = ("-chardev", f"socket,id=backdoor,path={comma},server=on,wait=off")
    assert one.arguments == (*chardev, "-mon", "chardev=backdoor,mode=control")
    assert Backdoor.new(_NEW).arguments[2:] == ("-object", "monitor-qmp,id=backdoor-monitor,chardev=backdoor")


def test_the_name_goes_with_it() -> None:
    door = Backdoor.new(_OLD)
    with _listening(door.path):
        door.close()
    door.close()
    assert not door.path.exists()


def test_what_nobody_listens_at_is_removed_but_neither_a_kept_machines_nor_that_of_a_run_that_lives() -> None:
    mine = Backdoor.new(_OLD).path
    with subprocess.Popen(["true"]) as ended:
        pass
    dead, kept = (mine.with_name(f"qmp-{ended.pid}-0011aabb-{number}") for number in (1, 2))
    # In a container pytest has the same number each time.
    before = mine.with_name(f"qmp-{os.getpid()}-0011aabb-1")
    for path in (dead, before, mine):
        with _listening(path):
            pass
    with _listening(kept):
        Backdoor.new(_OLD)
        assert [path.exists() for path in (dead, before, kept, mine)] == [False, False, True, True]


def test_a_name_that_is_too_long_for_a_socket_is_an_error(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    long = directory / ("x" * 90)
    long.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(long))
    with pytest.raises(ConfigError, match="set TMPDIR"):
        Backdoor.new(_OLD)


def _listening(path: Path) -> socket.socket:
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(path))
    server.listen()
    return server
