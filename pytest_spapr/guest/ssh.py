"""One ssh connection to one guest: paramiko's transport, a pinned host key, one client key, no passwords."""

from __future__ import annotations

import contextlib
import select
import shlex
import socket
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_spapr.deadline import Deadline
from pytest_spapr.errors import CommandFailed, DeadlineExpired, SshFailed
from pytest_spapr.timeline import Lane, Timeline

if TYPE_CHECKING:
    import paramiko

# How long a lost connection waits for the news that QEMU itself is gone, which is the better explanation.
_DEATH_NOTICE = 2.0
_CHUNK = 65536


@dataclass(frozen=True, slots=True)
class Completed:
    """A guest command that ended. :ivar status: exit status. :ivar stdout: :ivar stderr: all it wrote, as text."""

    command: str
    status: int
    stdout: str
    stderr: str

    def check(self) -> Completed:
        """Return itself.

        :raises CommandFailed: when the status is not 0.
        """
        if self.status != 0:
            raise CommandFailed(self.command, self.status, self.stdout, self.stderr)
        return self


class Ssh:
    """A connection made once and kept; commands run one after another, each in a channel of its own.

    A command is never run again after a reconnect: it may have taken effect (``echo 0 > online``).
    """

    def __init__(self, *, port: int, client_key: Path, host_key: str, timeline: Timeline) -> None:
        self.port = port
        self.client_key = client_key
        self._host_key = host_key
        self._timeline = timeline
        self._transport: paramiko.Transport | None = None

    @property
    def connected(self) -> bool:
        return self._transport is not None and self._transport.is_active()

    def connect(self, deadline: Deadline) -> None:
        """Connect and authenticate; about 0.3 s under TCG.

        :raises SshFailed: wrong host key, refused client key, no server within the deadline.
        :raises MachineDied: QEMU ended meanwhile.
        """
        # Imported here: 0.14 s that a test's collection need not pay.
        import paramiko

        self.close()
        began = time.monotonic()
        try:
            sock = socket.create_connection(("127.0.0.1", self.port), timeout=deadline.require("the guest's ssh port"))
            transport = paramiko.Transport(sock)
            self._transport = transport
            # Public-key arithmetic is what ssh costs under TCG: only curve25519 and ed25519, no ML-KEM, no RSA.
            options = transport.get_security_options()
            options.kex = ("curve25519-sha256@libssh.org",)
            options.key_types = ("ssh-ed25519",)
            transport.banner_timeout = transport.handshake_timeout = transport.auth_timeout = deadline.require("ssh")
            transport.start_client(timeout=deadline.require("the ssh key exchange"))
            offered = transport.get_remote_server_key()
            if f"{offered.get_name()} {offered.get_base64()}" != self._host_key:
                raise SshFailed(
                    f"the guest's host key is {offered.get_name()} {offered.get_base64()}, not the one pinned in the image "
                    f"({self._host_key}): something else answers on port {self.port}"
                )
            transport.auth_publickey("root", paramiko.Ed25519Key.from_private_key_file(str(self.client_key)))
        except (paramiko.SSHException, OSError, EOFError) as error:
            self.close()
            raise self._lost(f"cannot log in to the guest on port {self.port}: {error or type(error).__name__}") from error
        except SshFailed:
            self.close()
            raise
        self._timeline.record(Lane.SSH, f"connected in {time.monotonic() - began:.3f} s")

    def run(self, command: str, deadline: Deadline) -> Completed:
        """Run a shell command as root and return what it did, whatever its status; about 0.1 s under TCG.

        :raises DeadlineExpired: the command did not end; the message has what it wrote up to then, its channel is closed.
        :raises SshFailed: the connection broke; whether the command took effect is unknown.
        :raises MachineDied: QEMU ended meanwhile.
        """
        import paramiko

        if self._transport is None:
            raise SshFailed("not connected to the guest")
        self._timeline.record(Lane.SSH, f"$ {command}")
        began = time.monotonic()
        try:
            channel = self._transport.open_session(timeout=deadline.require(f"a channel for `{command}`"))
            try:
                channel.exec_command(command)
                stdout, stderr = self._collect(channel, command, deadline)
                channel.status_event.wait(deadline.remaining)
                if not channel.exit_status_ready() or channel.exit_status == -1:
                    raise self._lost(f"the connection to the guest ended during `{command}`")
                status = channel.recv_exit_status()
            finally:
                channel.close()
        except (paramiko.SSHException, OSError, EOFError) as error:
            raise self._lost(f"the connection to the guest broke during `{command}`: {error or type(error).__name__}") from error
        done = Completed(command, status, stdout, stderr)
        words = (stdout + stderr).strip().replace("\n", " | ")
        self._timeline.record(Lane.SSH, f"= {status} in {time.monotonic() - began:.3f} s" + (f": {words[:200]}" if words else ""))
        return done

    def close(self) -> None:
        """Drop the connection, without waiting for the guest. Safe to call at any time."""
        if self._transport is not None:
            self._transport.close()
            self._transport = None

    def command_line(self) -> str:
        """Return what a person types to log in."""
        options = "-o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR"
        return f"ssh -p {self.port} -i {shlex.quote(str(self.client_key))} {options} root@127.0.0.1"

    def _collect(self, channel: paramiko.Channel, command: str, deadline: Deadline) -> tuple[str, str]:
        # Both streams together: reading one to its end first deadlocks once the other's window is full.
        streams: tuple[list[bytes], list[bytes]] = ([], [])
        channel.settimeout(0.0)
        while True:
            while channel.recv_ready():
                streams[0].append(channel.recv(_CHUNK))
            while channel.recv_stderr_ready():
                streams[1].append(channel.recv_stderr(_CHUNK))
            if channel.eof_received or channel.closed:
                if not channel.recv_ready() and not channel.recv_stderr_ready():
                    break
                continue
            ready, _, _ = select.select([channel], [], [], deadline.remaining)
            if not ready and deadline.expired:
                so_far = b"".join(streams[0] + streams[1]).decode(errors="replace")
                raise DeadlineExpired(f"the guest command `{command}`", deadline.seconds, f"it wrote {so_far[-500:]!r}")
        stdout, stderr = (b"".join(parts).decode(errors="replace") for parts in streams)
        return stdout, stderr

    def _lost(self, message: str) -> SshFailed:
        """Return the error to raise; raises the reason of QEMU's death instead where there is one."""
        with contextlib.suppress(DeadlineExpired):
            self._timeline.wait(
                lambda _: None, since=self._timeline.mark(), deadline=Deadline(_DEATH_NOTICE), what="news of QEMU's end"
            )
        return SshFailed(message)
