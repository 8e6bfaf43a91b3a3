"""Fixtures of the tests that need no QEMU."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.debian_archive import Signer


@pytest.fixture(scope="session")
def signer() -> Iterator[Signer]:
    """Who signs the archives; its key takes a second to make."""
    with tempfile.TemporaryDirectory(prefix="gpg-") as home:  # gpg-agent's socket needs a short path
        made = Signer(Path(home))
        yield made
        made.close()
