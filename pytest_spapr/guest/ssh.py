"""One ssh connection to one guest: paramiko's transport, a pinned host key, and one key or password to log in with."""

from __future__ import annotations

import contextlib
import logging
import re
import select
import shlex
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Final

from pytest_spapr.deadline import Deadline
from pytest_spapr.errors import DeadlineExpired, LoginRefused, MachineError, SshFailed
from pytest_spapr.guest.completed import Completed, await_death_notice, record_answer, record_command
from pytest_spapr.images.login import KEY_TYPE, ROOT, Login, require_host_key
from pytest_spapr.timeline import Lane, Timeline

if TYPE_CHECKING:
    import paramiko

_FORWARD: Final = re.compile(r"TCP\[HOST_FORWARD\]\s+\d+\s+127\.0\.0\.1\s+(?P<port>\d+)\s+\S+\s+22\b")
_CHUNK: Final = 65536
_TAIL: Final = 500
_LOG: Final = "pytest_spapr.ssh"
# paramiko's word for a channel that closed without one; dropbear reports a signal in a message that paramiko does not read.
_NO_STATUS: Final = -1
# paramiko's own limits go by the wall clock, which may be set meanwhile: no jump of it reaches so far. Each wait has a deadline instead.
_NEVER: Final = 1e9


def forwarded_port(listing: str) -> int:
    """Return the host's port that leads to the guest's ssh. :param listing: what HMP's ``info usernet`` says.

    :raises MachineError: there is none.
    """
    if (forward := _FORWARD.search(listing)) is None:
        raise MachineError(f"QEMU forwards no port to the guest's ssh, `info usernet` says:\n{listing}")
    return int(forward["port"])


class Ssh:
    """A connection made once and kept; commands run one after another, each in a channel of its own.

    A command is never run again after a reconnect: it may have taken effect (``echo 0 > online``).

    :param login: who logs in; commands of a user other than root go through ``sudo``.
    :ivar host_key: the guest's, to which it is held. None until the first connection, which then learns it: it goes over the loopback to
        the QEMU that this process has started.
    """

    def __init__(self, *, port: int, login: Login, host_key: str | None, timeline: Timeline) -> None:
        self.port = port
        self.host_key = host_key
        self._login = login
        self._timeline = timeline
        self._transport: paramiko.Transport | None = None

    @property
    def connected(self) -> bool:
        return self._transport is not None and self._transport.is_active()

    def connect(self, deadline: Deadline) -> None:
        """Connect and authenticate; about 0.15 s under TCG.

        :raises SshFailed: wrong host key, refused client key, no server within the deadline.
        :raises MachineDied: QEMU ended meanwhile.
        """
        # Imported here: 0.14 s that a test's collection need not pay.
        import paramiko

        self.close()
        began = time.monotonic()
        try:
            self._log_in(deadline)
        except (paramiko.SSHException, OSError, EOFError, DeadlineExpired) as error:
            self.close()
            if isinstance(error, paramiko.AuthenticationException) and not deadline.expired:
                way = f"the key {self._login.key}" if self._login.key else "the password that was given"
                raise LoginRefused(
                    f"cannot log in to the guest on port {self.port}: {str(error).rstrip('.')}: it does not let {self._login.user} in "
                    f"with {way}"
                ) from error
            # Late, paramiko has many words for it ("No existing session").
            late = f"the guest's ssh server did not answer within {deadline.seconds:.1f} s" if deadline.expired else None
            raise self._lost(
                f"cannot log in to the guest on port {self.port}: {late or error or type(error).__name__}"
            ) from error
        except BaseException:
            self.close()
            raise
        self._timeline.record(Lane.SSH, f"connected in {time.monotonic() - began:.3f} s")

    def run(self, command: str, deadline: Deadline) -> Completed:
        """Run a shell command as root and return what it did, whatever its status; about 0.02 s under TCG.

        :raises DeadlineExpired: the command did not end; the message has what it wrote up to then, its channel is closed.
        :raises SshFailed: the connection broke, or a signal killed the command; whether it took effect is unknown.
        :raises MachineDied: QEMU ended meanwhile.
        """
        import paramiko

        if self._transport is None:
            raise SshFailed("not connected to the guest")
        record_command(self._timeline, Lane.SSH, command)
        began = time.monotonic()
        output = _Output()
        try:
            deadline.require(f"a channel for `{command}`")
            with _limited(self.hang_up, deadline):
                channel = self._transport.open_session(timeout=_NEVER)
            try:
                _begin(channel, command if self._login.user == ROOT else f"sudo -n sh -c {shlex.quote(command)}", deadline)
                in_time = output.collect(channel, deadline) and channel.status_event.wait(deadline.remaining)
                status = channel.exit_status
            finally:
                _close(channel)
        except (paramiko.SSHException, OSError, EOFError) as error:
            if not deadline.expired:
                lost = f"the connection to the guest broke during `{command}`: {error or type(error).__name__}"
                raise self._lost(lost) from error
            in_time = False
        if not in_time:
            self._timeline.record(Lane.SSH, f"= no end within {deadline.seconds:.1f} s")
            raise DeadlineExpired(f"the guest command `{command}`", deadline.seconds, f"it wrote {output.tail!r}")
        if status == _NO_STATUS:
            raise self._lost(
                f"the connection to the guest ended during `{command}`"
                if not self.connected
                else f"`{command}` ended without an exit status: in the guest, it was killed by a signal"
            )
        done = Completed(command, status, output.stdout, output.stderr)
        record_answer(self._timeline, Lane.SSH, done, time.monotonic() - began)
        return done

    def close(self) -> None:
        """Drop the connection, without waiting for the guest. Safe to call at any time."""
        if self._transport is not None:
            self._transport.close()
            self._transport = None

    def hang_up(self) -> None:
        """Break the connection off: whoever waits for an answer is told that it is lost. From any thread, and never waits."""
        transport = self._transport
        if transport is not None:
            with contextlib.suppress(OSError):
                transport.sock.shutdown(socket.SHUT_RDWR)

    def command_line(self) -> str:
        """Return what a person types to log in."""
        options = "-o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR"
        key = f"-i {shlex.quote(str(self._login.key))} " if self._login.key else ""
        return f"ssh -p {self.port} {key}{options} {self._login.user}@127.0.0.1"

    def _log_in(self, deadline: Deadline) -> None:
        import paramiko

        sock = socket.create_connection(("127.0.0.1", self.port), timeout=deadline.require("the guest's ssh port"))
        # A command is a few small messages in a row: each would wait for the acknowledgement of the one before, 40 ms.
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._transport = transport = paramiko.Transport(sock)
        _quiet(transport)
        # Public-key arithmetic is what ssh costs under TCG: only curve25519 and ed25519, no ML-KEM, no RSA.
        options = transport.get_security_options()
        options.kex = ("curve25519-sha256@libssh.org",)
        options.key_types = (KEY_TYPE,)
        transport.banner_timeout = transport.handshake_timeout = transport.auth_timeout = _NEVER
        with _limited(self.hang_up, deadline):
            transport.start_client()
            offered = transport.get_remote_server_key()
            self._check_host_key(f"{offered.get_name()} {offered.get_base64()}")
            if self._login.key is not None:
                transport.auth_publickey(self._login.user, paramiko.PKey.from_path(self._login.key))
            else:
                transport.auth_password(self._login.user, self._login.password or "")

    def _check_host_key(self, offered: str) -> None:
        if self.host_key is None:
            self.host_key = require_host_key(offered, f"the guest on port {self.port}")
            self._timeline.record(Lane.SSH, f"the guest's host key is {self.host_key} from now on")
        elif offered != self.host_key:
            raise SshFailed(
                f"the guest's host key is {offered}, not the one that is known ({self.host_key}): something else answers on port "
                f"{self.port}"
            )

    def _lost(self, message: str) -> SshFailed:
        """Return the error to raise; raises the reason of QEMU's death instead where there is one."""
        await_death_notice(self._timeline)
        return SshFailed(message)


class _Output:
    """What a command writes. :ivar stdout: :ivar stderr: as text, complete once :meth:`collect` returned True."""

    def __init__(self) -> None:
        self._streams: tuple[list[bytes], list[bytes]] = ([], [])

    @property
    def stdout(self) -> str:
        return _text(self._streams[0])

    @property
    def stderr(self) -> str:
        return _text(self._streams[1])

    @property
    def tail(self) -> str:
        """The end of both, for an error."""
        return (self.stdout + self.stderr)[-_TAIL:]

    def collect(self, channel: paramiko.Channel, deadline: Deadline) -> bool:
        """Read until both streams end; return whether they did in time."""
        channel.settimeout(0.0)
        while True:
            # Both streams together: reading one to its end first deadlocks once the other's window is full.
            more = False
            if channel.recv_ready():
                self._streams[0].append(channel.recv(_CHUNK))
                more = True
            if channel.recv_stderr_ready():
                self._streams[1].append(channel.recv_stderr(_CHUNK))
                more = True
            if not more and (channel.eof_received or channel.closed):
                # What came between the looks above and this one is there now, and nothing after it.
                if not channel.recv_ready() and not channel.recv_stderr_ready():
                    return True
            elif deadline.expired:
                return False
            elif not more:
                select.select([channel], [], [], deadline.remaining)


def _begin(channel: paramiko.Channel, command: str, deadline: Deadline) -> None:
    """Start a command."""
    # paramiko waits for the server's consent without a limit; a closed channel ends that wait.
    with _limited(lambda: _close(channel), deadline):
        channel.exec_command(command)


@contextlib.contextmanager
def _limited(give_up: Callable[[], None], deadline: Deadline) -> Iterator[None]:
    """Call ``give_up``, in another thread, if the ``with`` block does not end in time."""
    limit = threading.Timer(deadline.remaining, give_up)
    limit.daemon = True
    limit.start()
    try:
        yield
    finally:
        limit.cancel()


def _close(channel: paramiko.Channel) -> None:
    """Close a channel, whatever has become of its connection."""
    import paramiko

    with contextlib.suppress(paramiko.SSHException, OSError, EOFError):
        channel.close()


def _quiet(transport: paramiko.Transport) -> None:
    """Keep paramiko from logging tracebacks of what it also raises, unless somebody set a level to hear them."""
    transport.set_log_channel(_LOG)
    log = logging.getLogger(_LOG)
    if log.level == logging.NOTSET:
        log.setLevel(logging.CRITICAL)


def _text(parts: list[bytes]) -> str:
    return b"".join(parts).decode(errors="replace")
