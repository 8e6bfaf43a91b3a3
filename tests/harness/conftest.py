"""Fixtures of the harness's tests."""

from __future__ import annotations

import subprocess

import pytest

from pytest_spapr.cells import Cell
from pytest_spapr.errors import SpaprError
from pytest_spapr.fixtures import give_up
from pytest_spapr.rig import RIG


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
