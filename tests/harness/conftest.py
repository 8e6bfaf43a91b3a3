"""Fixtures of the harness's tests."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

import pytest_spapr
from pytest_spapr.cells import Cell
from pytest_spapr.errors import SpaprError
from pytest_spapr.fixtures import give_up
from pytest_spapr.rig import RIG

#: The uid and gid of the other user.
OTHER: Final = 65534


@pytest.fixture
def one_cell(request: pytest.FixtureRequest) -> Cell:
    """The first cell, where there are several: one build is enough."""
    cell: Cell = request.config.stash[RIG].cells[0]
    try:
        cell.build()
    except SpaprError as error:
        give_up(cell, error)
    return cell


@pytest.fixture
def unprivileged_mounts() -> None:
    """Skip the test where an ordinary user may not mount a file system in a namespace of its own."""
    try:
        # What a namespace's root may do without being root outside.
        subprocess.run(["unshare", "-rm", "mount", "-t", "tmpfs", "none", "/mnt"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"this host lets nobody mount in a namespace of his own: {error}")


@pytest.fixture
def common_ground() -> Iterator[Path]:
    """Yield a directory that every user comes to, which pytest's own is not: that is its user's alone, and made so anew by each run."""
    with tempfile.TemporaryDirectory(prefix="spapr-users-") as name:
        Path(name).chmod(0o711)
        yield Path(name)


@pytest.fixture
def other_user() -> list[str]:
    """Return what stands before a command that another user is to run: uid 65534, who has nothing.

    The interpreter and this package may be where only their owner comes to: the other user's mounts have them in place of that directory.
    """
    needed = {Path(sys.base_prefix).resolve(), Path(sys.prefix), Path(pytest_spapr.__file__).parents[1]}
    parents = {parent for path in needed for parent in path.parents if not parent.stat().st_mode & 0o001}
    hidden = {parent for parent in parents if parents.isdisjoint(parent.parents)}
    lines = ["set -e"]
    for directory in hidden:
        inside = [path for path in needed if directory in path.parents]
        lines += ["mount -t tmpfs none /mnt"]
        lines += [f"mkdir /mnt/{at} && mount --bind '{path}' /mnt/{at}" for at, path in enumerate(inside)]
        lines += [f"mount -t tmpfs -o mode=755 none '{directory}'"]
        lines += [f"mkdir -p '{path}' && mount --move /mnt/{at} '{path}'" for at, path in enumerate(inside)]
        lines += ["umount /mnt"]
    lines.append(f'exec setpriv --reuid={OTHER} --regid={OTHER} --clear-groups "$@"')
    prefix = ["unshare", "--mount", "sh", "-c", "\n".join(lines), "sh"]
    try:
        probe = [*prefix, sys.executable, "-c", "import pytest_spapr, paramiko"]
        subprocess.run(probe, check=True, capture_output=True, cwd="/", text=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"nobody can become another user here: {error}, {getattr(error, 'stderr', '')}")
    return prefix
