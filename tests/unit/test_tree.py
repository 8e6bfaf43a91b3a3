"""The kept tree: right after every set of patches, and written to only where that changes something."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from pytest_spapr.builds.tree import PatchedTree
from pytest_spapr.errors import BuildError

pytestmark = pytest.mark.skipif(not shutil.which("patch"), reason="no patch here")

LONG_AGO = 1_000_000_000


@pytest.fixture
def tree(tmp_path: Path) -> PatchedTree:
    for name, text in {"hw/drc.c": "one\ntwo\n", "hw/pci.c": "pci\n", "configure": "#!/bin/sh\n"}.items():
        path = tmp_path / "pristine" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        os.utime(path, (LONG_AGO, LONG_AGO))
    (tmp_path / "root").mkdir()
    made = PatchedTree(tmp_path / "root", tmp_path / "pristine", ["patch"])
    made.create()
    return made


def _patch(tmp_path: Path, name: str, text: str) -> Path:
    path = tmp_path / name
    path.write_text(text)
    return path


def _change(old: str, new: str, file: str = "hw/drc.c") -> str:
    return f"--- a/{file}\n+++ b/{file}\n@@ -1,2 +1,2 @@\n one\n-{old}\n+{new}\n"


def _new(tree: PatchedTree) -> set[str]:
    files = (path for path in tree.source.rglob("*") if path.is_file())
    return {str(path.relative_to(tree.source)) for path in files if path.stat().st_mtime > LONG_AGO}


def test_only_what_a_patch_changes_is_written_and_the_pristine_tree_never(tree: PatchedTree, tmp_path: Path) -> None:
    assert tree.patch([_patch(tmp_path, "a.patch", _change("two", "three"))]) == {"hw/drc.c"}
    assert (tree.source / "hw/drc.c").read_text() == "one\nthree\n"
    assert _new(tree) == {"hw/drc.c"}
    assert (tmp_path / "pristine/hw/drc.c").read_text() == "one\ntwo\n"


def test_the_same_patches_again_write_nothing(tree: PatchedTree, tmp_path: Path) -> None:
    patches = [_patch(tmp_path, "a.patch", _change("two", "three")), _patch(tmp_path, "b.patch", _change("three", "four"))]
    tree.patch(patches)
    os.utime(tree.source / "hw/drc.c", (LONG_AGO, LONG_AGO))
    assert tree.patch(patches) == set()
    assert _new(tree) == set()
    assert (tree.source / "hw/drc.c").read_text() == "one\nfour\n"


def test_a_file_that_is_no_longer_patched_is_as_it_was_but_new_enough_to_be_compiled(tree: PatchedTree, tmp_path: Path) -> None:
    tree.patch([_patch(tmp_path, "a.patch", _change("two", "three"))])
    assert tree.patch([]) == {"hw/drc.c"}
    assert (tree.source / "hw/drc.c").read_text() == "one\ntwo\n"
    assert _new(tree) == {"hw/drc.c"}
    assert tree.patch([]) == set()


def test_files_that_come_and_go(tree: PatchedTree, tmp_path: Path) -> None:
    added = "diff --git a/hw/new.c b/hw/new.c\nnew file mode 100644\n--- /dev/null\n+++ b/hw/new.c\n@@ -0,0 +1 @@\n+new\n"
    gone = "diff --git a/hw/pci.c b/hw/pci.c\ndeleted file mode 100644\n--- a/hw/pci.c\n+++ /dev/null\n@@ -1 +0,0 @@\n-pci\n"
    assert tree.patch([_patch(tmp_path, "a.patch", added + gone)]) == {"hw/new.c", "hw/pci.c"}
    assert (tree.source / "hw/new.c").read_text() == "new\n"
    assert not (tree.source / "hw/pci.c").exists()
    assert tree.patch([]) == {"hw/new.c", "hw/pci.c"}
    assert not (tree.source / "hw/new.c").exists()
    assert (tree.source / "hw/pci.c").read_text() == "pci\n"


def test_a_renamed_file(tree: PatchedTree, tmp_path: Path) -> None:
    text = "diff --git a/hw/pci.c b/hw/spapr_pci.c\nsimilarity index 100%\nrename from hw/pci.c\nrename to hw/spapr_pci.c\n"
    tree.patch([_patch(tmp_path, "a.patch", text)])
    assert not (tree.source / "hw/pci.c").exists()
    assert (tree.source / "hw/spapr_pci.c").read_text() == "pci\n"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (_change("zwei", "three"), r"bad\.patch does not apply\. Nothing was changed\. GNU patch says:\n(.|\n)*FAILED"),
        (_change("two", "three", "hw/nonesuch.c"), r"bad\.patch does not apply"),
        (_change("two", "three", "../../outside.c"), r"bad\.patch (changes no file|does not apply)"),
        ("no patch at all\n", r"bad\.patch changes no file\. Give a patch"),
    ],
)
def test_a_patch_that_does_not_apply_changes_nothing(tree: PatchedTree, tmp_path: Path, text: str, says: str) -> None:
    good = _patch(tmp_path, "a.patch", _change("two", "three"))
    tree.patch([good])
    os.utime(tree.source / "hw/drc.c", (LONG_AGO, LONG_AGO))
    other = _patch(tmp_path, "other.patch", _change("two", "five"))
    with pytest.raises(BuildError, match=says):
        tree.patch([other, _patch(tmp_path, "bad.patch", text)])
    assert _new(tree) == set()
    assert (tree.source / "hw/drc.c").read_text() == "one\nthree\n"
    assert sorted(path.name for path in (tmp_path / "root").iterdir()) == ["src", "touched.json"]


def test_a_run_that_was_killed_while_it_wrote_is_put_right(tree: PatchedTree, tmp_path: Path) -> None:
    tree.patch([])
    (tmp_path / "root/touched.json").write_text(json.dumps(["hw/drc.c"]))
    (tree.source / "hw/drc.c").unlink()
    (tree.source / "hw/drc.c").write_text("half")
    assert tree.patch([]) == {"hw/drc.c"}
    assert (tree.source / "hw/drc.c").read_text() == "one\ntwo\n"
