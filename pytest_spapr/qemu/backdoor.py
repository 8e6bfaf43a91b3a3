"""A second monitor for people: QMP on a socket with a name, beside the one that the test has.

What is sent there does not stand on the machine's timeline; the events that come of it do.
"""

from __future__ import annotations

import os
import socket
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol, Self

from pytest_spapr.errors import ConfigError
from pytest_spapr.private import OwnNames

_SOCKETS: Final = OwnNames("qmp-")
# Of 108 bytes the last is a zero (unix(7)).
_LONGEST: Final = 107
_MODERN: Final = "monitor-qmp"


class Featured(Protocol):
    """As much of a QEMU build as counts here."""

    @property
    def features(self) -> frozenset[str]: ...


@dataclass(frozen=True, slots=True)
class Backdoor:
    """A socket where a QEMU is to listen. :ivar path: its name. :ivar arguments: what is added to QEMU's command line."""

    path: Path
    arguments: tuple[str, ...]

    @classmethod
    def new(cls, build: Featured) -> Self:
        """Return one that is nobody else's, below a directory of this user's own; those that nobody listens at any more are removed.

        :raises ConfigError: the directory cannot be made, is not this user's alone, or has too long a name for sockets.
        """
        for left in _SOCKETS.left():
            if not _answers(left):
                left.unlink(missing_ok=True)
        path = _SOCKETS.new()
        if len(os.fsencode(path)) > _LONGEST:
            raise ConfigError(f"{path} is too long a name for a socket: set TMPDIR to a directory with a shorter one.")
        name = "backdoor"
        # 11.1 deprecates -mon.
        modern = _MODERN in build.features
        monitor = (
            ("-object", f"{_MODERN},id={name}-monitor,chardev={name}") if modern else ("-mon", f"chardev={name},mode=control")
        )
        comma = str(path).replace(",", ",,")
        return cls(path, ("-chardev", f"socket,id={name},path={comma},server=on,wait=off", *monitor))

    def close(self) -> None:
        """Remove the name: a QEMU that is killed leaves it."""
        with suppress(OSError):
            self.path.unlink()


def _answers(path: Path) -> bool:
    """Return whether somebody listens there: a machine may be kept for longer than the run that made it."""
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(1)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            return False
        except OSError:
            return True
        return True
