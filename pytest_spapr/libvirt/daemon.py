"""A libvirtd of our own: an ordinary user's (``qemu:///session``), with all that it writes in a directory that goes with it.

No D-Bus, no KVM and no root are needed; what libvirtd misses of these it only logs.
"""

from __future__ import annotations

import itertools
import os
import select
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from pytest_spapr.deadline import Deadline
from pytest_spapr.errors import ConfigError, DeadlineExpired, MachineError
from pytest_spapr.libvirt.packages import Libvirt

_GUARD: Final = str(Path(__file__).with_name("guard.py"))
_START_SECONDS: Final = 30.0
_CALL_SECONDS: Final = 60.0
#: Bytes of the longest name of its directory: of the 107 of a unix socket's path, libvirt's directories and names take the others.
LONGEST: Final = 40
# libvirtd takes root for the host's own, system-wide one. To be somebody else without being able to become anybody: the same user under
# another number.
_AS_ORDINARY_USER: Final = ("unshare", "--user", "--map-user=1000", "--map-group=1000")


@dataclass(frozen=True, slots=True)
class Answer:
    """What one call of virsh came to. :ivar text: all that it printed. :ivar seconds: that it took, 0.03 s of them virsh's own."""

    command: str
    status: int
    text: str
    seconds: float

    @property
    def failed(self) -> bool:
        return self.status != 0

    def check(self) -> Self:
        """Return this answer, for a call that must succeed.

        :raises MachineError: it did not, with libvirt's words.
        """
        if self.failed:
            raise MachineError(f"libvirt: `virsh {self.command}` failed: {self.text}")
        return self

    def __str__(self) -> str:
        return f"{'failed' if self.failed else 'succeeded'} in {self.seconds:.3f} s: {self.text!r}"


def ordinary_user() -> tuple[str, ...] | None:
    """Return what a command must begin with to run as an ordinary user, nothing for who is one; None for root who cannot be one here."""
    if os.geteuid() != 0:
        return ()
    if shutil.which(_AS_ORDINARY_USER[0]) is None:
        return None
    tried = subprocess.run([*_AS_ORDINARY_USER, "true"], capture_output=True, check=False)
    return _AS_ORDINARY_USER if tried.returncode == 0 else None


class Daemon:
    """A running libvirtd. Leaves nothing behind, whatever ends this process: no process, no socket, no file, no domain.

    :param libvirt: what to run. :param user: see :func:`ordinary_user`. :ivar home: its directory.
    :raises ConfigError: the place of temporary files has too long a name. :raises MachineError: it does not come up.
    """

    def __init__(self, libvirt: Libvirt, user: Sequence[str] = ()) -> None:
        self._libvirt = libvirt
        self._user = tuple(user)
        self.home = Path(tempfile.mkdtemp(prefix="spapr-"))
        self._resources = ExitStack()
        self._names = itertools.count(1)
        try:
            if len(os.fsencode(self.home)) > LONGEST:
                raise ConfigError(
                    f"{self.home} is too long a name for libvirt's sockets: set TMPDIR to a directory of at most {LONGEST - 15} bytes."
                )
            self._start()
        except BaseException:
            self.close()
            raise

    def virsh(self, *arguments: str, seconds: float = _CALL_SECONDS) -> Answer:
        """Run one command of virsh and return what came of it.

        :raises DeadlineExpired: no answer in time.
        """
        began = time.monotonic()
        try:
            done = subprocess.run(
                self.command(*arguments),
                env=self.environment(),
                cwd=self.home,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                timeout=seconds,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise DeadlineExpired(f"libvirt's answer to `virsh {' '.join(arguments)}`", seconds, self.log()) from error
        return Answer(" ".join(arguments), done.returncode, done.stdout.strip(), time.monotonic() - began)

    def new_name(self) -> str:
        """Return a name that no domain of this daemon has had."""
        return f"guest{next(self._names)}"

    def command(self, *arguments: str) -> list[str]:
        """Return the command line of virsh with these arguments."""
        return [*self._user, *self._libvirt.virsh, "--connect", "qemu:///session", *arguments]

    def environment(self) -> dict[str, str]:
        """Return all the environment of the daemon and of virsh."""
        home = self.home
        found = {"HOME": str(home), "PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C"}
        found |= {f"XDG_{name.upper()}_HOME": str(home / name) for name in ("config", "cache", "data", "state")}
        # virsh would start a daemon where it meets none.
        found |= {"XDG_RUNTIME_DIR": str(home / "run"), "LIBVIRT_AUTOSTART": "0"}
        if self._libvirt.catalog is not None:
            found["XML_CATALOG_FILES"] = str(home / "catalog.xml")
        return {**found, **self._libvirt.env}

    def log(self) -> str:
        """Return the last lines that the daemon has written."""
        lines = [line for name in ("libvirtd.out", "libvirtd.log") for line in _lines(self.home / name)]
        return "\n".join(lines[-15:])

    def close(self) -> None:
        """End the daemon and every domain of it, at once, and remove the directory. Safe to call twice."""
        self._resources.close()
        shutil.rmtree(self.home, ignore_errors=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _start(self) -> None:
        home = self.home
        for name in ("run", "config/libvirt"):
            (home / name).mkdir(mode=0o700, parents=True)
        # The default is virtlogd, one more daemon.
        (home / "config/libvirt/qemu.conf").write_text('stdio_handler = "file"\n')
        (home / "libvirtd.conf").write_text(f'log_outputs = "3:file:{home}/libvirtd.log"\n')
        if self._libvirt.catalog is not None:
            (home / "catalog.xml").write_text(self._libvirt.catalog)
        guard = subprocess.Popen([sys.executable, "-I", "-S", _GUARD, str(home)], stdin=subprocess.PIPE, start_new_session=True)
        # Its input ends here, and it with all that it guards.
        self._resources.callback(guard.communicate)
        with (home / "libvirtd.out").open("wb") as output, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ready:
            ready.bind(str(home / "notify"))
            daemon = subprocess.Popen(
                [*self._user, *self._libvirt.daemon, "--config", str(home / "libvirtd.conf")],
                env={**self.environment(), "NOTIFY_SOCKET": str(home / "notify")},
                cwd=home,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            # The guard kills it, and waits for its end; only we can reap it.
            self._resources.callback(daemon.wait)
            self._resources.callback(guard.communicate)
            self._await_ready(ready, daemon)

    def _await_ready(self, ready: socket.socket, daemon: subprocess.Popen[bytes]) -> None:
        """Wait until the daemon says that it takes connections, as it would say to systemd (sd_notify(3))."""
        deadline = Deadline(_START_SECONDS)
        ended = os.pidfd_open(daemon.pid)
        try:
            heard, _, _ = select.select([ready.fileno(), ended], [], [], deadline.remaining)
        finally:
            os.close(ended)
        if ready.fileno() not in heard:
            how = f"it ended with status {daemon.wait()}" if heard else f"it was not ready within {deadline.seconds:g} s"
            raise MachineError(f"libvirtd did not come up: {how}. It said:\n{self.log()}")


def _lines(path: Path) -> list[str]:
    return path.read_text(errors="replace").splitlines() if path.exists() else []
