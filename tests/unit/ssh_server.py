"""A small ssh server in this process, on a loopback port, whose commands are Python functions."""

from __future__ import annotations

import contextlib
import io
import socket
import threading
from collections.abc import Callable
from typing import Final

import paramiko
from paramiko.common import AUTH_FAILED, AUTH_SUCCESSFUL, OPEN_SUCCEEDED

from pytest_spapr.images.keys import Keys

#: What a client command does: it writes to its channel and returns its exit status, or None for none at all.
Command = Callable[[paramiko.Channel, str], int | None]

SECONDS: Final = 20.0


class ServerTransport(paramiko.Transport):
    """Starts a command when its consent is on the wire, as sshd does; paramiko's server may be overtaken by its own command."""

    def __init__(self, sock: socket.socket) -> None:
        super().__init__(sock)
        self.after_reply: list[Callable[[], None]] = []

    def _send_user_message(self, data: paramiko.Message) -> None:
        super()._send_user_message(data)  # type: ignore[misc]  # the one place that sends the reply
        if threading.current_thread() is self:
            while self.after_reply:
                self.after_reply.pop()()


class SshServer(paramiko.ServerInterface):
    """Serves one connection after another until :meth:`close`.

    :param host: its ``client_private`` is the host key. :param allowed: the public key that may log in.
    :param user: who may log in, with that key or this ``password``.
    :param stall: at which step the server stays silent for good: ``banner``, ``auth``, ``channel`` or ``exec``.
    """

    def __init__(
        self, host: Keys, allowed: str, command: Command, *, stall: str = "", user: str = "root", password: str | None = None
    ) -> None:
        self.commands: list[str] = []
        self.sockets: list[socket.socket] = []
        self.logins = 0
        self._host_key = paramiko.Ed25519Key.from_private_key(io.StringIO(host.client_private.decode()))
        self._allowed = allowed
        self._user = user
        self._password = password
        self._command = command
        self._stall = stall
        self._closing = threading.Event()
        self._transports: list[paramiko.Transport] = []
        self._threads: list[threading.Thread] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._start(self._accept)

    def close(self) -> None:
        self._closing.set()
        # close() alone leaves a thread in accept().
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut()
        for thread in self._threads:
            thread.join(SECONDS)
        for transport in self._transports:
            transport.join(SECONDS)
        for sock in self.sockets:
            sock.close()

    def cut(self) -> None:
        """Break all connections, as a guest's end would."""
        for sock in self.sockets:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                sock, _ = self._listener.accept()
                self.sockets.append(sock)
                if self._stall != "banner":
                    transport = ServerTransport(sock)
                    transport.add_server_key(self._host_key)
                    self._transports.append(transport)
                    # With an event, this does not wait for the client.
                    transport.start_server(event=threading.Event(), server=self)

    def _start(self, work: Callable[[], None]) -> None:
        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        self._threads.append(thread)

    def _reach(self, step: str) -> None:
        if step == self._stall:
            self._closing.wait()

    def get_allowed_auths(self, username: str) -> str:
        return "publickey" if self._password is None else "publickey,password"

    def check_auth_password(self, username: str, password: str) -> int:
        return AUTH_SUCCESSFUL if (username, password) == (self._user, self._password) else AUTH_FAILED

    def check_auth_publickey(self, username: str, key: paramiko.PKey) -> int:
        self._reach("auth")
        if username == self._user and f"{key.get_name()} {key.get_base64()}" == self._allowed:
            self.logins += 1
            return AUTH_SUCCESSFUL
        return AUTH_FAILED

    def check_channel_request(self, kind: str, chanid: int) -> int:
        self._reach("channel")
        return OPEN_SUCCEEDED

    def check_channel_exec_request(self, channel: paramiko.Channel, command: bytes) -> bool:
        self._reach("exec")
        text = command.decode()
        self.commands.append(text)
        transport = channel.get_transport()
        assert isinstance(transport, ServerTransport)
        transport.after_reply.append(lambda: self._start(lambda: self._execute(channel, text)))
        return True

    def _execute(self, channel: paramiko.Channel, command: str) -> None:
        # The client may be gone: that is what some tests are about.
        with contextlib.suppress(OSError, EOFError, paramiko.SSHException):
            status = self._command(channel, command)
            channel.shutdown_write()
            if status is not None:
                channel.send_exit_status(status)
            channel.close()
