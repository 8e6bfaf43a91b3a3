"""Every test in here runs pytest inside pytest, with stubs in place of QEMU and its guest."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest

from pytest_spapr import cells, config, fixtures, rig

from . import stubs


@pytest.fixture(autouse=True)
def own_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The settings of whoever runs these tests are not those of the runs inside."""
    for option in config.OPTIONS:
        monkeypatch.delenv(option.variable, raising=False)
    monkeypatch.setenv("SPAPR_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.delenv("CI", raising=False)
    # Nor do stubs wait for the slots of real machines.
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))


@pytest.fixture
def stubbed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A QEMU build and a guest image are at hand, and machines start at once."""
    monkeypatch.setattr(cells, "supply_build", lambda settings, cache, progress: stubs.build())
    monkeypatch.setattr(cells, "supply_image", lambda settings, cache, progress: stubs.image())
    monkeypatch.setattr(rig, "Starter", stubs.StubStarter)
    monkeypatch.setattr(fixtures, "harness", stubs.harness)
