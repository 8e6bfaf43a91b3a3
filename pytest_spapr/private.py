"""The directory of a user's own on a host: lock files, second monitors' sockets, what a machine writes in place of a user's disk."""

from __future__ import annotations

import os
import stat
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Final

from pytest_spapr.errors import ConfigError

#: What whoever cannot use it may do.
RELOCATE: Final = "TMPDIR names the directory to use in place of /tmp."


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
