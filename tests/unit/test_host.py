"""testinfra's Host over a guest's shell."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from pytest_spapr.errors import MachineDied
from pytest_spapr.guest.completed import Completed
from pytest_spapr.guest.host import testinfra_host as host_over


class LocalShell:
    """Runs the commands here. :ivar commands: what it was asked."""

    def __init__(self) -> None:
        self.commands: list[str] = []

    def __call__(self, command: str) -> Completed:
        self.commands.append(command)
        done = subprocess.run(["/bin/sh", "-c", command], capture_output=True, text=True, check=False)
        return Completed(command, done.returncode, done.stdout, done.stderr)


@pytest.fixture
def shell() -> LocalShell:
    return LocalShell()


def test_a_command_has_status_and_both_streams(shell: LocalShell) -> None:
    result = host_over(shell).run("echo out; echo err >&2; exit 3")
    assert (result.rc, result.stdout, result.stderr) == (3, "out\n", "err\n")
    assert result.failed
    assert shell.commands == ["echo out; echo err >&2; exit 3"]


def test_arguments_are_quoted(shell: LocalShell) -> None:
    assert host_over(shell).check_output("printf %%s %s", "a 'b'; $(c)") == "a 'b'; $(c)"


def test_letters_beyond_ascii(shell: LocalShell) -> None:
    assert host_over(shell).check_output("echo %s", "wärmer") == "wärmer"


def test_a_file_is_read(shell: LocalShell, tmp_path: Path) -> None:
    path = tmp_path / "cmdline"
    path.write_text("console=hvc0\n")
    path.chmod(0o640)
    file = host_over(shell).file(str(path))
    assert file.exists
    assert file.is_file
    assert not file.is_directory
    assert file.mode == 0o640
    assert file.content_string == "console=hvc0\n"
    assert not host_over(shell).file(str(tmp_path / "none")).exists


def test_no_command_of_its_own_to_learn_the_encoding(shell: LocalShell) -> None:
    """The guest has no python to ask, and under TCG each command costs 0.1 s."""
    host_over(shell).check_output("echo")
    assert shell.commands == ["echo"]


def test_two_guests_are_two_hosts() -> None:
    """``testinfra.get_host`` would give the first one for both: it caches by address."""
    first, second = LocalShell(), LocalShell()
    hosts = host_over(first), host_over(second)
    hosts[1].run("true")
    assert (first.commands, second.commands) == ([], ["true"])
    assert hosts[0] is not hosts[1]


def test_the_death_of_the_machine_comes_through() -> None:
    def dead(command: str) -> Completed:
        raise MachineDied("QEMU was killed by SIGKILL", -9)

    with pytest.raises(MachineDied):
        host_over(dead).file("/proc/cmdline").content_string  # noqa: B018 - reading it is the point
