"""``spapr boot`` with a real QEMU: lines out of a pipe, and a person at a terminal."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pexpect
import pytest

from pytest_spapr import QemuBuild

_SECONDS = 60.0
_MONITOR = re.compile(r"monitor: qmp-shell -p (?P<path>\S+)")


def _command(build: QemuBuild) -> list[str]:
    code = "import sys; from pytest_spapr.cli import main; sys.exit(main())"
    return [sys.executable, "-c", code, "boot", "--no-guest", f"--qemu={build.name}"]


def test_lines_out_of_a_pipe_are_done_one_by_one_and_nothing_is_left(qemu_build: QemuBuild) -> None:
    lines = "query-status\ndevice_add driver=virtio-rng-pci id=rng0\ncont\n.hmp info version\nquery-status\n.quit\nstop\n"
    done = subprocess.run(_command(qemu_build), input=lines, capture_output=True, text=True, timeout=_SECONDS, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    out = done.stdout.splitlines()
    for line in (
        "spapr> query-status",
        "spapr> device_add driver=virtio-rng-pci id=rng0",
        ".".join(map(str, qemu_build.version)),
    ):
        assert any(shown.startswith(line) for shown in out), done.stdout
    assert any("event] RESUME" in line for line in out)
    assert "spapr> stop" not in out
    assert not any("SIGKILL" in line for line in out), "how the machine is ended is no news"
    told = _MONITOR.search(done.stdout)
    assert told is not None
    assert not Path(told["path"]).exists()


def test_a_line_that_fails_is_told_and_the_next_is_done(qemu_build: QemuBuild) -> None:
    lines = "device_del id=nonesuch\n!true\nquery-uuid\n"
    done = subprocess.run(_command(qemu_build), input=lines, capture_output=True, text=True, timeout=_SECONDS, check=False)
    assert done.returncode == 1
    assert "error: device_del: DeviceNotFound: Device 'nonesuch' not found" in done.stdout
    assert "error: this machine has no guest" in done.stdout
    assert "UUID" in done.stdout


def test_a_qemu_that_is_asked_to_quit_ends_it(qemu_build: QemuBuild) -> None:
    done = subprocess.run(_command(qemu_build), input="quit\n", capture_output=True, text=True, timeout=_SECONDS, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.fixture(params=["xterm", "dumb"])
def person(request: pytest.FixtureRequest, qemu_build: QemuBuild) -> Iterator[pexpect.spawn[str]]:
    """Somebody at a terminal of that type in which the command runs."""
    command, env = _command(qemu_build), {**os.environ, "TERM": request.param}
    typing: pexpect.spawn[str] = pexpect.spawn(
        command[0], command[1:], encoding="utf-8", timeout=_SECONDS, dimensions=(40, 200), env=env
    )
    try:
        typing.expect_exact("spapr>")
        yield typing
    finally:
        typing.close(force=True)


@pytest.mark.parametrize("person", ["xterm"], indirect=True)
def test_a_line_is_completed(person: pexpect.spawn[str]) -> None:
    person.send("query-statu\t\r")
    person.expect_exact('"prelaunch"')


def test_a_person_types_and_leaves(person: pexpect.spawn[str]) -> None:
    person.send("query-status\r")
    person.expect_exact('"prelaunch"')
    # Drawn again below what was shown.
    person.expect_exact("spapr>")
    person.sendeof()
    person.expect(pexpect.EOF)
    assert person.wait() == 0


def test_what_the_machine_says_comes_while_a_person_types(person: pexpect.spawn[str]) -> None:
    person.send("cont\r")
    person.expect_exact("event] RESUME")
    person.send(".quit\r")
    person.expect(pexpect.EOF)
    assert person.wait() == 0


def test_a_qemu_that_dies_ends_the_terminal_and_is_told(person: pexpect.spawn[str]) -> None:
    assert person.pid is not None
    (qemu,) = _children(person.pid)
    person.send("query-sta")
    person.expect_exact("query-sta")
    os.kill(qemu, signal.SIGKILL)
    person.expect_exact(f"spapr: QEMU (pid {qemu}) was killed by SIGKILL")
    person.expect(pexpect.EOF)
    assert person.wait() == 2


def _children(pid: int) -> list[int]:
    return [int(one) for task in Path(f"/proc/{pid}/task").iterdir() for one in (task / "children").read_text().split()]
