"""A host to log in to: an ssh server in this process, on a loopback port, that gives a shell on a terminal of its own."""

from __future__ import annotations

import contextlib
import fcntl
import io
import os
import pty
import signal
import socket
import subprocess
import termios
import threading
from collections.abc import Mapping
from pathlib import Path

import paramiko
from paramiko.common import AUTH_FAILED, AUTH_SUCCESSFUL, OPEN_SUCCEEDED

from pytest_spapr.images.keys import Keys

_SECONDS = 20.0
PROMPT = "host> "


class ShellHost(paramiko.ServerInterface):
    """Serves logins until :meth:`close`.

    :param keys: ``client_private`` is the host's key too. :param directory: its home. :param env: more of its shells' environment.
    """

    def __init__(self, keys: Keys, directory: Path, env: Mapping[str, str]) -> None:
        self._keys = keys
        self._directory = directory
        # No readline: it writes more than what commands say.
        self._env = {"PATH": os.environ["PATH"], "HOME": str(directory), "TERM": "dumb", "PS1": PROMPT, **env}
        self._threads: list[threading.Thread] = []
        self._transports: list[paramiko.Transport] = []
        self._shells: list[subprocess.Popen[bytes]] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._start(threading.Thread(target=self._accept, daemon=True))

    def close(self) -> None:
        # close() alone leaves a thread in accept().
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for transport in self._transports:
            transport.close()
            transport.join(_SECONDS)
        for shell in self._shells:
            # As a terminal's end does.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(shell.pid, signal.SIGHUP)
            shell.wait(_SECONDS)
        for thread in self._threads:
            thread.join(_SECONDS)

    def _start(self, thread: threading.Thread) -> None:
        thread.start()
        self._threads.append(thread)

    def _accept(self) -> None:
        key = paramiko.Ed25519Key.from_private_key(io.StringIO(self._keys.client_private.decode()))
        with contextlib.suppress(OSError):
            while True:
                sock, _ = self._listener.accept()
                transport = paramiko.Transport(sock)
                transport.add_server_key(key)
                self._transports.append(transport)
                # With an event, this does not wait for the client.
                transport.start_server(event=threading.Event(), server=self)

    def get_allowed_auths(self, username: str) -> str:
        return "publickey"

    def check_auth_publickey(self, username: str, key: paramiko.PKey) -> int:
        known = f"{key.get_name()} {key.get_base64()}" == self._keys.client_public
        return AUTH_SUCCESSFUL if known else AUTH_FAILED

    def check_channel_request(self, kind: str, chanid: int) -> int:
        return OPEN_SUCCEEDED

    def check_channel_pty_request(self, *_: object) -> bool:
        return True

    def check_channel_shell_request(self, channel: paramiko.Channel) -> bool:
        ours, theirs = pty.openpty()

        def take_terminal() -> None:
            fcntl.ioctl(0, termios.TIOCSCTTY, 0)

        shell = subprocess.Popen(
            ["bash", "--norc", "--noprofile", "-i"],
            cwd=self._directory,
            env=self._env,
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
            preexec_fn=take_terminal,
        )
        os.close(theirs)
        self._shells.append(shell)
        self._start(threading.Thread(target=self._to_client, args=(channel, ours), daemon=True))
        self._start(threading.Thread(target=self._to_shell, args=(channel, ours, shell), daemon=True))
        return True

    @staticmethod
    def _to_client(channel: paramiko.Channel, terminal: int) -> None:
        # A terminal whose last process has ended gives EIO.
        with contextlib.suppress(OSError, EOFError):
            while data := os.read(terminal, 4096):
                channel.sendall(data)
        channel.close()

    @staticmethod
    def _to_shell(channel: paramiko.Channel, terminal: int, shell: subprocess.Popen[bytes]) -> None:
        with contextlib.suppress(OSError):
            while data := channel.recv(4096):
                os.write(terminal, data)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(shell.pid, signal.SIGHUP)
        # Whatever runs in it loses its terminal.
        shell.wait(_SECONDS)
        os.close(terminal)
