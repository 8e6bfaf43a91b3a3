"""A machine for a person: what typed lines mean, what is done, and the terminal."""

from __future__ import annotations

import io
import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from prompt_toolkit.application import create_app_session
from prompt_toolkit.input import PipeInput, create_pipe_input
from prompt_toolkit.output import DummyOutput

from pytest_spapr import cli
from pytest_spapr.cli.terminal import Piped, Typed, require_typing, terminal
from pytest_spapr.errors import ConfigError, MachineError, QmpRefused
from pytest_spapr.interactive.lines import HELP, Help, Hmp, InGuest, Leave, Login, Qmp, parse
from pytest_spapr.interactive.session import Session, heard
from pytest_spapr.timeline import Lane, Record

_SECONDS = 20.0


class Machine:
    """Answers what is asked of it."""

    def __init__(self, *, has_guest: bool = True) -> None:
        self.has_guest = has_guest
        self.asked: list[Any] = []
        self.qmp = self
        self.guest = self

    def execute(self, name: str, arguments: Any = None) -> Any:
        self.asked.append((name, dict(arguments or {})))
        if name == "device_del":
            raise QmpRefused("device_del", "DeviceNotFound", "Device 'x' not found")
        return [{"name": "stop"}, {"name": "cont"}] if name == "query-commands" else {"status": "running"}

    def hmp(self, line: str) -> str:
        return f"{line}:\n  bus: main\t1\n"

    def run(self, command: str, *, seconds: float) -> Any:
        self.asked.append(command)
        return SimpleNamespace(stdout="6.1\n\x1b[2J", stderr="no\n", status=3)

    def ssh_command(self) -> str:
        return "ssh -p 2222 -i '/a b/key' root@127.0.0.1"


@pytest.mark.parametrize(
    ("text", "means"),
    [
        ("", None),
        ("  \n", None),
        ("query-status", Qmp("query-status")),
        ("device_add driver=virtio-rng-pci id=rng0", Qmp("device_add", {"driver": "virtio-rng-pci", "id": "rng0"})),
        (
            "object-add qom-type=memory-backend-ram id=m size=268435456",
            Qmp("object-add", {"qom-type": "memory-backend-ram", "id": "m", "size": 268435456}),
        ),
        ("a b.c=true b.d='[1, 2]' e='\"1\"' f=x=y", Qmp("a", {"b": {"c": True, "d": [1, 2]}, "e": "1", "f": "x=y"})),
        ('{"execute": "device_del", "arguments": {"id": "core1"}, "id": 7}', Qmp("device_del", {"id": "core1"})),
        ("! uname -r; echo 'a  b'", InGuest("uname -r; echo 'a  b'")),
        ("!", Login()),
        (".login", Login()),
        (".hmp info qtree", Hmp("info qtree")),
        (".help", Help()),
        (".quit", Leave()),
    ],
)
def test_what_a_line_means(text: str, means: object) -> None:
    assert parse(text) == means


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("device_del core1", "'core1' is no KEY=VALUE: expected e.g. device_add"),
        ("device_del =core1", "'=core1' is no KEY=VALUE"),
        ("a b='", "No closing quotation"),
        ("a b=1 b=2", "b is given twice"),
        ("a b=1 b.c=2", "b.c is below b, which has a value already"),
        ("{", "this is no JSON"),
        ('{"arguments": {}}', "this is no QMP command"),
        ('{"execute": "stop", "argument": {}}', "this is no QMP command"),
        ('{"execute": "stop", "arguments": [1]}', "this is no QMP command"),
        (".hmp", "is none of .help, .quit, .login, .hmp"),
        (".help me", "is none of"),
    ],
)
def test_a_line_that_means_nothing_is_told(text: str, says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(text)
    assert says in str(caught.value)


def test_answers_are_shown_and_what_a_guest_writes_does_nothing_to_the_terminal() -> None:
    machine: Any = Machine()
    session = Session(machine)
    assert list(session.do("query-status")) == ['{"status": "running"}']
    assert list(session.do("!uname -r")) == ["6.1", "\\x1b[2Jno", "[status 3]"]
    assert list(session.do(".hmp info qtree")) == ["info qtree:", "  bus: main     1"]
    assert list(session.do(".help")) == HELP.splitlines()
    assert machine.asked == [("query-status", {}), "uname -r"]
    with pytest.raises(QmpRefused, match="Device 'x' not found"):
        list(session.do("device_del id=x"))
    assert not session.over
    assert list(session.do(".quit")) == []
    assert session.over


def test_long_answers_get_lines_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    machine: Any = Machine()
    monkeypatch.setattr(machine, "execute", lambda *_: [{"vcpu": number} for number in range(20)])
    assert len(list(Session(machine).do("query-cpus-fast"))) == 62


def test_a_login_takes_the_terminal() -> None:
    machine: Any = Machine()
    started: list[list[str]] = []
    assert list(Session(machine, started.append).do("!")) == []
    assert started == [["ssh", "-p", "2222", "-i", "/a b/key", "root@127.0.0.1"]]


@pytest.mark.parametrize("line", ["!uname", "!"])
def test_without_a_guest_nothing_is_asked_of_it(line: str) -> None:
    machine: Any = Machine(has_guest=False)
    with pytest.raises(MachineError, match="this machine has no guest"):
        list(Session(machine).do(line))


def test_commands_of_qemu_and_our_own_are_completed() -> None:
    machine: Any = Machine()
    assert Session(machine).words() == ["cont", "stop", ".help", ".quit", ".login", ".hmp"]


def test_what_comes_by_itself_is_shown_but_not_what_the_plugin_asks() -> None:
    assert heard(Record(1, 2.5, Lane.KERNEL, "CPU \x1b goes")) == "[2.500 kernel] CPU \\x1b goes"
    assert heard(Record(1, 2.5, Lane.EVENT, "DEVICE_DELETED device=core1")) == "[2.500 event] DEVICE_DELETED device=core1"
    assert heard(Record(1, 2.5, Lane.SHELL, "true")) is None
    assert heard(Record(1, 2.5, Lane.QMP, "<- {}")) is None


# The terminal


@pytest.fixture
def typing(monkeypatch: pytest.MonkeyPatch) -> Iterator[PipeInput]:
    """A person's keyboard."""
    monkeypatch.setenv("TERM", "xterm")
    with create_pipe_input() as keyboard, create_app_session(input=keyboard, output=DummyOutput()):
        yield keyboard


def test_a_line_is_edited_completed_and_remembered(typing: PipeInput) -> None:
    lines = Typed(["query-status", "query-block"])
    typing.send_text("query-s\t\n")
    assert lines.read() == "query-status"
    typing.send_text("\x1b[A\n")
    assert lines.read() == "query-status", "the one before"
    typing.send_text("uery-block\x01q\n")
    assert lines.read() == "query-block", "Ctrl-A goes to the line's begin"
    typing.send_text("\x04")
    with pytest.raises(EOFError):
        lines.read()


def test_a_machine_that_ends_ends_the_wait_for_a_line(typing: PipeInput) -> None:
    lines = Typed([])
    hang_up = threading.Timer(0.2, lines.hang_up)
    hang_up.start()
    guard = threading.Timer(_SECONDS, lambda: typing.send_text("\x04too late\n"))
    guard.start()
    try:
        with pytest.raises(EOFError):
            lines.read()
    finally:
        guard.cancel()
        hang_up.join()
    with pytest.raises(EOFError):
        lines.read()


def test_a_terminal_without_a_cursor_takes_lines_until_the_machine_ends(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TERM", "dumb")
    leader, follower = os.openpty()
    with os.fdopen(leader, "wb", buffering=0) as keyboard, os.fdopen(follower) as stream, terminal(list, stream) as where:
        keyboard.write(b"query-status\n\n")
        assert [where.read(), where.read()] == ["query-status\n", "\n"]
        hang_up = threading.Timer(0.2, where.hang_up)
        hang_up.start()
        guard = threading.Timer(_SECONDS, lambda: keyboard.write(b"too late\n"))
        guard.start()
        try:
            for _ in range(2):
                with pytest.raises(EOFError):
                    where.read()
        finally:
            guard.cancel()
            hang_up.join()
    where.hang_up()
    assert capsys.readouterr().out == "spapr> " * 4


def test_a_person_without_a_cursor_hangs_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    leader, follower = os.openpty()
    with os.fdopen(leader, "wb", buffering=0) as keyboard, os.fdopen(follower) as stream, terminal(list, stream) as where:
        keyboard.write(b"\x04")
        with pytest.raises(EOFError):
            where.read()


def test_lines_from_a_pipe_are_shown_as_if_they_were_typed(capsys: pytest.CaptureFixture[str]) -> None:
    with terminal(list, io.StringIO("query-status\n!uname\n")) as where:
        assert isinstance(where, Piped)
        assert [where.read(), where.read()] == ["query-status\n", "!uname\n"]
        with pytest.raises(EOFError):
            where.read()
    assert capsys.readouterr().out == "spapr> query-status\nspapr> !uname\n"


def test_a_person_without_prompt_toolkit_is_told_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "prompt_toolkit", None)
    require_typing(io.StringIO())
    leader, follower = os.openpty()
    with (
        os.fdopen(leader, "wb"),
        os.fdopen(follower) as stream,
        pytest.raises(ConfigError, match=r"pip install 'pytest-spapr\[live\]'"),
    ):
        require_typing(stream)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--no-guest", "debian-12"], "an image has no meaning with --no-guest"),
        (["--qemu=/nonesuch/qemu"], "there is no such file"),
        (["--qemu=./qemu", "nonesuch"], "there is no such file or directory"),
    ],
)
def test_what_cannot_be_booted_is_one_clear_message(
    arguments: list[str], says: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("SPAPR_CACHE_DIR", str(tmp_path))
    monkeypatch.delenv("SPAPR_QEMU", raising=False)
    assert cli.main(["boot", *arguments]) == 2
    assert says in capsys.readouterr().err
