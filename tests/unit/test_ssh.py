"""The guest's ssh connection, against a server in this process."""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import paramiko
import pytest

from pytest_spapr.deadline import Deadline
from pytest_spapr.errors import CommandFailed, DeadlineExpired, MachineDied, SshFailed
from pytest_spapr.guest import completed
from pytest_spapr.guest.completed import Completed
from pytest_spapr.guest.ssh import Ssh
from pytest_spapr.images import keys
from pytest_spapr.images.login import Login
from pytest_spapr.timeline import Lane, Timeline

from .ssh_server import SECONDS, Command, ServerTransport, SshServer

#: For what is to happen; what is not to happen is given a SHORT time only.
LONG = 20.0
SHORT = 0.5
#: What a wait of SHORT may take at most on a busy host.
SOON = 10.0

HOST, CLIENT = keys.generate(), keys.generate()


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(completed, "_DEATH_NOTICE", SHORT)


@pytest.fixture
def timeline() -> Timeline:
    return Timeline()


@pytest.fixture
def client_key(tmp_path: Path) -> Path:
    path = tmp_path / "client key"
    path.write_bytes(CLIENT.client_private)
    path.chmod(0o600)
    return path


def echo(channel: paramiko.Channel, command: str) -> int:
    """Say the command on stdout, one word of it on stderr, and end with the number that it ends with."""
    channel.sendall(f"{command}\n".encode())
    channel.sendall_stderr(f"{command.split()[0]}!\n".encode())
    return int(command.split()[-1])


@contextmanager
def serving(command: Command = echo, *, stall: str = "") -> Iterator[SshServer]:
    server = SshServer(HOST, CLIENT.client_public, command, stall=stall)
    try:
        yield server
    finally:
        server.close()


@contextmanager
def client_of(port: int, client_key: Path, timeline: Timeline, *, pinned: str = HOST.client_public) -> Iterator[Ssh]:
    ssh = Ssh(port=port, login=Login(key=client_key), host_key=pinned, timeline=timeline)
    try:
        yield ssh
    finally:
        ssh.close()


@contextmanager
def connected(command: Command, client_key: Path, timeline: Timeline, *, stall: str = "") -> Iterator[tuple[Ssh, SshServer]]:
    with serving(command, stall=stall) as server, client_of(server.port, client_key, timeline) as ssh:
        ssh.connect(Deadline(LONG))
        yield ssh, server


class TestCommands:
    def test_status_and_both_streams(self, client_key: Path, timeline: Timeline) -> None:
        with connected(echo, client_key, timeline) as (ssh, server):
            assert ssh.run("exit 0", Deadline(LONG)) == Completed("exit 0", 0, "exit 0\n", "exit!\n")
            assert ssh.run("exit 255", Deadline(LONG)) == Completed("exit 255", 255, "exit 255\n", "exit!\n")
        assert server.logins == 1
        assert server.commands == ["exit 0", "exit 255"]

    def test_a_failure_is_one_when_checked(self) -> None:
        assert Completed("true", 0, "x", "").check().stdout == "x"
        with pytest.raises(CommandFailed, match="guest command `false` ended with status 1: no") as failed:
            Completed("false", 1, "", "no\n").check()
        assert (failed.value.status, failed.value.stderr) == (1, "no\n")

    def test_the_timeline_has_commands_and_answers(self, client_key: Path, timeline: Timeline) -> None:
        with connected(echo, client_key, timeline) as (ssh, _):
            ssh.run("echo 3", Deadline(LONG))
        connection, asked, answered = [record.text for record in timeline.since(0, Lane.SSH)]
        assert connection.startswith("connected in ")
        assert asked == "$ echo 3"
        assert answered.startswith("= 3 in ")
        assert answered.endswith(": echo 3 | echo!")

    def test_a_megabyte_on_each_stream_does_not_block(self, client_key: Path, timeline: Timeline) -> None:
        """Each stream alone fills its window, so that reading one to its end first would never end."""
        size = 1 << 20

        def flood(channel: paramiko.Channel, command: str) -> int:
            channel.sendall_stderr(b"e" * size)
            channel.sendall(b"o" * size)
            channel.sendall_stderr(b"E" * size)
            return 7

        with connected(flood, client_key, timeline) as (ssh, _):
            done = ssh.run("flood", Deadline(LONG))
        assert done == Completed("flood", 7, "o" * size, "e" * size + "E" * size)

    def test_bytes_that_are_no_text_do_not_break_it(self, client_key: Path, timeline: Timeline) -> None:
        def binary(channel: paramiko.Channel, command: str) -> int:
            channel.sendall(b"\xff\xfe\x00")
            return 0

        with connected(binary, client_key, timeline) as (ssh, _):
            assert ssh.run("cat \\\n /vmlinux", Deadline(LONG)).stdout == "\ufffd\ufffd\x00"
        asked, answered = [record.text for record in timeline.since(0, Lane.SSH)][1:]
        assert asked == r"$ cat \\n /vmlinux"
        assert answered.endswith(": \ufffd\ufffd\\x00")

    def test_letters_cut_between_two_packets_are_whole(self, client_key: Path, timeline: Timeline) -> None:
        def slowly(channel: paramiko.Channel, command: str) -> int:
            for byte in "ü€".encode():
                channel.sendall(bytes([byte]))
            return 0

        with connected(slowly, client_key, timeline) as (ssh, _):
            assert ssh.run("x", Deadline(LONG)).stdout == "ü€"

    def test_one_that_was_killed_has_no_status(self, client_key: Path, timeline: Timeline) -> None:
        with connected(lambda *_: None, client_key, timeline) as (ssh, _):
            with pytest.raises(SshFailed, match=r"`kill -9 \$\$` ended without an exit status: .* killed by a signal"):
                ssh.run("kill -9 $$", Deadline(LONG))
            assert ssh.connected

    def test_before_a_connection_there_is_none(self, client_key: Path, timeline: Timeline) -> None:
        with client_of(1, client_key, timeline) as ssh:
            assert not ssh.connected
            with pytest.raises(SshFailed, match="not connected"):
                ssh.run("true", Deadline(LONG))

    def test_what_a_person_types(self, client_key: Path, timeline: Timeline) -> None:
        with client_of(2222, client_key, timeline) as ssh:
            assert ssh.command_line().startswith(f"ssh -p 2222 -i '{client_key}' ")
            assert ssh.command_line().endswith(" root@127.0.0.1")


class TestDeadlines:
    """The guest's TCP stays open when the guest hangs: nothing but the deadline ends a wait."""

    def expired(self, ssh: Ssh, command: str) -> str:
        before = time.monotonic()
        with pytest.raises(DeadlineExpired) as expired:
            ssh.run(command, Deadline(SHORT))
        assert time.monotonic() - before < SOON
        assert expired.value.seconds == SHORT
        assert expired.value.what == f"the guest command `{command}`"
        return str(expired.value)

    def test_what_was_written_so_far_is_told(self, client_key: Path, timeline: Timeline) -> None:
        release = threading.Event()

        def half(channel: paramiko.Channel, command: str) -> int:
            channel.sendall(b"first half")
            channel.sendall_stderr(b"a warning")
            release.wait(SECONDS)
            return 0

        with connected(half, client_key, timeline) as (ssh, _):
            text = self.expired(ssh, "make")
            release.set()
            assert "it wrote 'first halfa warning'" in text
            assert "= no end within 0.5 s" in timeline.since(0, Lane.SSH)[-1].text

    def test_the_connection_serves_on(self, client_key: Path, timeline: Timeline) -> None:
        release = threading.Event()

        def wait_or_echo(channel: paramiko.Channel, command: str) -> int:
            return echo(channel, command) if command != "sleep" else int(release.wait(SECONDS))

        with connected(wait_or_echo, client_key, timeline) as (ssh, server):
            self.expired(ssh, "sleep")
            assert ssh.run("echo 0", Deadline(LONG)).status == 0
            release.set()
            assert server.logins == 1

    def test_output_without_end_ends_too(self, client_key: Path, timeline: Timeline) -> None:
        def yes(channel: paramiko.Channel, command: str) -> int:
            while True:
                channel.sendall(b"y\n" * 1000)

        with connected(yes, client_key, timeline) as (ssh, _):
            assert "y\\n" in self.expired(ssh, "yes")

    def test_streams_closed_but_running_on(self, client_key: Path, timeline: Timeline) -> None:
        release = threading.Event()

        def daemon(channel: paramiko.Channel, command: str) -> int:
            channel.shutdown_write()
            release.wait(SECONDS)
            return 0

        with connected(daemon, client_key, timeline) as (ssh, _):
            self.expired(ssh, "exec >&- 2>&-; sleep 100")
            release.set()

    @pytest.mark.parametrize("stall", ["channel", "exec"])
    def test_a_server_that_stopped_answering(self, client_key: Path, timeline: Timeline, stall: str) -> None:
        with connected(echo, client_key, timeline, stall=stall) as (ssh, _):
            self.expired(ssh, "echo 0")

    def test_no_time_at_all(self, client_key: Path, timeline: Timeline) -> None:
        with connected(echo, client_key, timeline) as (ssh, server):
            with pytest.raises(DeadlineExpired):
                ssh.run("echo 0", Deadline(0))
            assert server.commands == []


class TestClock:
    """The host's wall clock is set while a connection waits; paramiko goes by it."""

    @pytest.fixture(params=[3600.0, -3600.0], ids=["forwards", "backwards"])
    def jumping(self, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
        """Set the clock by an hour at each look at it, for all but the server."""
        real, lock, looks = time.time, threading.Lock(), 0

        def jumped() -> float:
            nonlocal looks
            if isinstance(threading.current_thread(), ServerTransport):
                return real()
            with lock:
                looks += 1
                return real() + looks * float(request.param)

        monkeypatch.setattr(time, "time", jumped)

    @pytest.mark.usefixtures("jumping")
    def test_what_is_answered_is_heard(self, client_key: Path, timeline: Timeline) -> None:
        def slow(channel: paramiko.Channel, command: str) -> int:
            # Longer than paramiko looks at once.
            threading.Event().wait(0.3)
            return echo(channel, command)

        with connected(slow, client_key, timeline) as (ssh, _):
            assert ssh.run("echo 3", Deadline(LONG)).status == 3

    @pytest.mark.usefixtures("jumping")
    @pytest.mark.parametrize("stall", ["banner", "auth"])
    def test_a_login_that_is_not_ends_with_its_deadline(self, client_key: Path, timeline: Timeline, stall: str) -> None:
        with serving(stall=stall) as server, client_of(server.port, client_key, timeline) as ssh:
            before = time.monotonic()
            with pytest.raises(SshFailed, match=r"did not answer within 0\.5 s"):
                ssh.connect(Deadline(SHORT))
            assert SHORT <= time.monotonic() - before < SOON

    @pytest.mark.usefixtures("jumping")
    @pytest.mark.parametrize("stall", ["channel", "exec"])
    def test_a_command_that_is_not_ends_with_its_deadline(self, client_key: Path, timeline: Timeline, stall: str) -> None:
        with connected(echo, client_key, timeline, stall=stall) as (ssh, _):
            before = time.monotonic()
            with pytest.raises(DeadlineExpired):
                ssh.run("echo 0", Deadline(SHORT))
            assert SHORT <= time.monotonic() - before < SOON


class TestConnecting:
    def test_small_messages_do_not_wait_for_each_other(
        self, client_key: Path, timeline: Timeline, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        made: list[socket.socket] = []
        connect = socket.create_connection

        def remembered(*args: Any, **kwargs: Any) -> socket.socket:
            made.append(connect(*args, **kwargs))
            return made[-1]

        monkeypatch.setattr(socket, "create_connection", remembered)
        with connected(echo, client_key, timeline):
            [connection] = made
            assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)

    def test_another_host_key_is_refused(self, client_key: Path, timeline: Timeline) -> None:
        """Before the client shows its own key."""
        with serving() as server, client_of(server.port, client_key, timeline, pinned=CLIENT.client_public) as ssh:
            with pytest.raises(SshFailed) as refused:
                ssh.connect(Deadline(LONG))
            assert str(refused.value) == (
                f"the guest's host key is {HOST.client_public}, not the one that is known ({CLIENT.client_public}): "
                f"something else answers on port {server.port}"
            )
            assert not ssh.connected
            assert server.logins == 0

    def test_another_client_key_is_refused_by_the_guest(self, client_key: Path, timeline: Timeline) -> None:
        client_key.write_bytes(keys.generate().client_private)
        with serving() as server, client_of(server.port, client_key, timeline) as ssh:
            with pytest.raises(SshFailed, match=f"cannot log in to the guest on port {server.port}: Authentication failed"):
                ssh.connect(Deadline(LONG))
            assert not ssh.connected

    def test_a_client_key_that_is_gone_is_named(self, client_key: Path, timeline: Timeline) -> None:
        client_key.unlink()
        with serving() as server, client_of(server.port, client_key, timeline) as ssh:
            with pytest.raises(SshFailed, match="client key"):
                ssh.connect(Deadline(LONG))
            assert not ssh.connected

    def test_nobody_listens(self, client_key: Path, timeline: Timeline) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            port = listener.getsockname()[1]
        with client_of(port, client_key, timeline) as ssh, pytest.raises(SshFailed, match=f"on port {port}: .*refused"):
            ssh.connect(Deadline(LONG))

    @pytest.mark.parametrize("stall", ["banner", "auth"])
    def test_a_server_that_never_answers(
        self, client_key: Path, timeline: Timeline, caplog: pytest.LogCaptureFixture, stall: str
    ) -> None:
        with serving(stall=stall) as server, client_of(server.port, client_key, timeline) as ssh:
            before = time.monotonic()
            with pytest.raises(SshFailed, match=rf"on port {server.port}: the guest's ssh server did not answer within 0\.5 s"):
                ssh.connect(Deadline(SHORT))
            assert time.monotonic() - before < SOON
            assert not ssh.connected
        assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []

    def test_no_time_at_all(self, client_key: Path, timeline: Timeline) -> None:
        with serving() as server, client_of(server.port, client_key, timeline) as ssh:
            with pytest.raises(SshFailed, match="did not answer within"):
                ssh.connect(Deadline(0))
            assert not ssh.connected

    def test_nothing_stays_of_a_refused_connection(self, client_key: Path, timeline: Timeline) -> None:
        with serving() as server, client_of(server.port, client_key, timeline, pinned="ssh-ed25519 none") as ssh:
            with pytest.raises(SshFailed):
                ssh.connect(Deadline(LONG))
            assert not ssh.connected
        self.settled(server.port)

    def test_nothing_stays_of_a_used_connection(self, client_key: Path, timeline: Timeline) -> None:
        with connected(echo, client_key, timeline) as (ssh, server):
            ssh.run("echo 0", Deadline(LONG))
            ssh.connect(Deadline(LONG))
            ssh.run("echo 0", Deadline(LONG))
            ssh.close()
            ssh.close()
            assert not ssh.connected
        self.settled(server.port)

    def settled(self, port: int) -> None:
        """No thread of paramiko's and no descriptor to that port is left."""
        for thread in threading.enumerate():
            if isinstance(thread, paramiko.Transport):
                thread.join(SECONDS)
                assert not thread.is_alive()
        inodes = {
            fields[9] for fields in map(str.split, Path("/proc/net/tcp").read_text().splitlines()) if f":{port:04X}" in fields[2]
        }
        ours = {str(path.readlink()) for path in Path("/proc/self/fd").iterdir() if path.is_symlink()}
        assert not {f"socket:[{inode}]" for inode in inodes} & ours


class TestLoss:
    def test_a_lost_connection_names_the_command(self, client_key: Path, timeline: Timeline) -> None:
        running = threading.Event()
        release = threading.Event()

        def hang(channel: paramiko.Channel, command: str) -> int:
            running.set()
            release.wait(SECONDS)
            return 0

        with connected(hang, client_key, timeline) as (ssh, server), ThreadPoolExecutor(1) as pool:
            work = pool.submit(ssh.run, "echo 0 > online", Deadline(LONG))
            assert running.wait(SECONDS)
            server.cut()
            with pytest.raises(SshFailed, match=r"the connection to the guest (broke|ended) during `echo 0 > online`"):
                work.result(SECONDS)
            release.set()
            assert not ssh.connected

    def test_hanging_up_ends_a_wait(self, client_key: Path, timeline: Timeline) -> None:
        """Said by another thread, which does not wait."""
        release = threading.Event()

        def hang(channel: paramiko.Channel, command: str) -> int:
            ssh.hang_up()
            release.wait(SECONDS)
            return 0

        with connected(hang, client_key, timeline) as (ssh, _):
            with pytest.raises(SshFailed, match=r"the connection to the guest (broke|ended) during `x`"):
                ssh.run("x", Deadline(LONG))
            release.set()
            assert not ssh.connected
            ssh.hang_up()
            ssh.close()
            ssh.hang_up()

    def test_a_command_is_not_run_twice(self, client_key: Path, timeline: Timeline) -> None:
        with connected(echo, client_key, timeline) as (ssh, server):
            server.cut()
            with pytest.raises(SshFailed):
                ssh.run("echo 0", Deadline(LONG))
            assert server.commands == []
            assert server.logins == 1

    def test_the_death_of_qemu_is_the_better_reason(
        self, client_key: Path, timeline: Timeline, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """It is known a little later than the loss of the connection."""
        monkeypatch.setattr(completed, "_DEATH_NOTICE", LONG)
        death = MachineDied("QEMU was killed by SIGKILL", -9)

        def die(channel: paramiko.Channel, command: str) -> int:
            server.cut()
            timeline.end(death)
            return 0

        with connected(die, client_key, timeline) as (ssh, server):
            before = time.monotonic()
            with pytest.raises(MachineDied) as died:
                ssh.run("x", Deadline(LONG))
            assert died.value is death
            assert time.monotonic() - before < 2

    def test_the_death_of_qemu_while_connecting(self, client_key: Path, timeline: Timeline) -> None:
        timeline.end(MachineDied("QEMU was killed by SIGKILL", -9))
        with socket.create_server(("127.0.0.1", 0)) as listener:
            port = listener.getsockname()[1]
        with client_of(port, client_key, timeline) as ssh, pytest.raises(MachineDied):
            ssh.connect(Deadline(LONG))
