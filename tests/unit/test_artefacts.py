"""What a run left, told from what was there before it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pytest_spapr.report import artefacts


def test_what_came_since_is_told_whatever_the_clock_says(tmp_path: Path) -> None:
    """As where it was set back by a year during the run, or forwards before it."""
    for name in ("old", "again"):
        artefacts.note_kept(tmp_path / name, ["it lives"])
    before = artefacts.present(tmp_path)
    (tmp_path / "again" / "more").touch()
    artefacts.note_kept(tmp_path / "new", ["one", "another"])
    (tmp_path / "file").touch()
    for name in ("again", "new"):
        os.utime(tmp_path / name, (1_000_000_000, 1_000_000_000))
    assert list(artefacts.left_since(tmp_path, before)) == [
        (str(tmp_path / "again"), ["it lives"]),
        (str(tmp_path / "new"), ["one", "another"]),
    ]


@pytest.mark.parametrize("made", [False, True])
def test_a_run_that_left_nothing(tmp_path: Path, made: bool) -> None:
    root = tmp_path / "run"
    if made:
        artefacts.note_kept(root / "old", [])
    assert list(artefacts.left_since(root, artefacts.present(root))) == []
