"""The directory of a user's own on a host: lock files, second monitors' sockets, what a machine writes in place of a user's disk."""

from __future__ import annotations

import itertools
import os
import secrets
import stat
import tempfile
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from pytest_spapr.errors import ConfigError

#: What whoever cannot use it may do.
RELOCATE: Final = "TMPDIR names the directory to use in place of /tmp."

# Of this process, whatever its number: in a container pytest has the same one each time.
_OURS: Final = secrets.token_hex(4)


def private_directory() -> Path:
    """Return this user's own directory below the one for temporary files, made if need be.

    :raises ConfigError: it cannot be made, or is not this user's alone.
    """
    try:
        directory = Path(tempfile.gettempdir()) / f"pytest-spapr-{os.getuid()}"
        with suppress(FileExistsError):
            directory.mkdir(mode=0o700)
        found = directory.lstat()
    except OSError as error:
        raise ConfigError(f"cannot make a directory for lock files: {error}. {RELOCATE}") from error
    # Anybody may make something of this name in /tmp.
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise ConfigError(f"{directory} is for lock files, but it is not a directory that is yours alone. Remove it. {RELOCATE}")
    return directory


@dataclass(frozen=True, slots=True)
class OwnNames:
    """Names for one kind of file in that directory, which say whose they are.

    :ivar prefix: the kind, e.g. ``disk-``. :ivar suffix: what they end with.
    """

    prefix: str
    suffix: str = ""
    _numbers: itertools.count[int] = field(default_factory=lambda: itertools.count(1), init=False, repr=False, compare=False)

    def new(self) -> Path:
        """Return one that nobody else has. :raises ConfigError: see :func:`private_directory`."""
        return private_directory() / f"{self.prefix}{os.getpid()}-{_OURS}-{next(self._numbers)}{self.suffix}"

    def left(self) -> list[Path]:
        """Return the files of processes that are gone, those that had our number among them. :raises ConfigError: as above."""
        return [path for path in private_directory().glob(f"{self.prefix}*") if self._gone(path.name)]

    def _gone(self, name: str) -> bool:
        owner, _, rest = name.removeprefix(self.prefix).partition("-")
        if owner == str(os.getpid()):
            return not rest.startswith(f"{_OURS}-")
        return not Path("/proc", owner).exists()
