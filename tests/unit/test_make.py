"""A kept tree is configured once and compiled again; what fails is told. Compiler and ninja are scripts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pytest_spapr.builds import toolchain
from pytest_spapr.builds.make import Maker
from pytest_spapr.builds.recipe import Recipe
from pytest_spapr.builds.toolchain import Toolchain
from pytest_spapr.builds.tree import PatchedTree
from pytest_spapr.errors import BuildError
from pytest_spapr.progress import NullProgress
from tests.unit.debian_archive import elf

NINJA = """#!/bin/sh
echo '[1/2] Compiling C object libqemu.fa.p/drc.c.o'
echo binary > "$2/qemu-system-ppc64"
"""
FAILING = """#!/bin/sh
echo '[1/2] Compiling C object a.o'
echo 'FAILED: drc.c.o'
echo 'drc.c:1: error: unknown'
exit 1
"""


class Shown(NullProgress):
    """Notes what is shown."""

    def __init__(self) -> None:
        self.said: list[object] = []

    def phase(self, text: str) -> None:
        self.said.append(text)

    def update(self, done: int, total: int, text: str) -> None:
        self.said.append((done, total, text))


@pytest.fixture
def tools(tmp_path: Path) -> Toolchain:
    made = Toolchain(tmp_path / "tools/root", "amd64", {"PATH": "/usr/bin:/bin"}, {"gcc": "12"})
    Path(made.tool("x")).parent.mkdir(parents=True)
    _script(made, NINJA)
    return made


@pytest.fixture
def tree(tmp_path: Path) -> PatchedTree:
    (tmp_path / "pristine").mkdir()
    (tmp_path / "pristine/configure").write_text('echo "$@" >> ../configured; test -z "$BROKEN" && echo fine\n')
    (tmp_path / "root").mkdir()
    made = PatchedTree(tmp_path / "root", tmp_path / "pristine", ["patch"])
    made.create()
    return made


def _script(tools: Toolchain, text: str) -> None:
    path = Path(tools.tool("ninja"))
    path.write_text(text)
    path.chmod(0o755)


def _maker(tmp_path: Path, tools: Toolchain, progress: NullProgress, version: str = "1:5.2-1") -> Maker:
    return Maker(tmp_path / "root", tools, version, Recipe(("test",), ("--minimal",)), progress)


def test_it_is_configured_once_and_compiled_each_time(tools: Toolchain, tree: PatchedTree, tmp_path: Path) -> None:
    shown = Shown()
    assert not _maker(tmp_path, tools, shown).is_current(tree.source)
    for _ in range(2):
        binary = _maker(tmp_path, tools, shown).make(tree.source, jobs=1)
    assert binary.read_text() == "binary\n"
    assert _maker(tmp_path, tools, shown).is_current(tree.source)
    assert (tmp_path / "root/configured").read_text().count("--minimal") == 1
    assert shown.said == ["configuring QEMU", *2 * ["compiling QEMU", (1, 2, "libqemu.fa.p/drc.c.o")]]


def test_another_version_or_toolchain_is_not_current(tools: Toolchain, tree: PatchedTree, tmp_path: Path) -> None:
    _maker(tmp_path, tools, Shown()).make(tree.source, jobs=1)
    assert not _maker(tmp_path, tools, Shown(), "1:5.2-2").is_current(tree.source)
    newer = Toolchain(tools.prefix, "amd64", tools.environment, {"gcc": "13"})
    assert not _maker(tmp_path, newer, Shown()).is_current(tree.source)


def test_a_compiler_error_is_told_and_the_tree_stays_configured(tools: Toolchain, tree: PatchedTree, tmp_path: Path) -> None:
    _script(tools, FAILING)
    with pytest.raises(
        BuildError, match=r"compiling QEMU failed \(exit status 1\).*build\.log.*says:\n  FAILED: drc\.c\.o\n.*error: un"
    ):
        _maker(tmp_path, tools, Shown()).make(tree.source, jobs=1)
    assert _maker(tmp_path, tools, Shown()).is_current(tree.source)


def test_a_configuration_that_failed_is_done_again(tools: Toolchain, tree: PatchedTree, tmp_path: Path) -> None:
    broken = Toolchain(tools.prefix, "amd64", {**tools.environment, "BROKEN": "1"}, tools.packages)
    with pytest.raises(BuildError, match="configuring QEMU failed"):
        _maker(tmp_path, broken, Shown()).make(tree.source, jobs=1)
    assert not _maker(tmp_path, tools, Shown()).is_current(tree.source)
    _maker(tmp_path, tools, Shown()).make(tree.source, jobs=1)


def test_a_toolchain_that_was_moved_is_none(tmp_path: Path) -> None:
    facts = {"format": toolchain._FORMAT, "place": str(tmp_path / "here"), "architecture": "amd64", "packages": {}}
    for name in ("here", "there"):
        (tmp_path / name).mkdir()
        (tmp_path / name / toolchain._MANIFEST).write_text(json.dumps(facts))
    assert toolchain._open(tmp_path / "here") is not None
    assert toolchain._open(tmp_path / "there") is None


def test_only_programs_are_changed_to_start_through_the_toolchains_loader(tmp_path: Path) -> None:
    files = {
        "gcc": elf(interpreter="/lib64/ld.so", needed=("libc.so.6",)),
        "lib.so": elf(needed=("libc.so.6",)),
        "script": b"#!/bin/sh\n",
    }
    (tmp_path / "usr/bin").mkdir(parents=True)
    for name, data in files.items():
        (tmp_path / "usr/bin" / name).write_bytes(data)
    (tmp_path / "usr/bin/cc").symlink_to("gcc")
    assert [path.name for path in toolchain._programs(tmp_path)] == ["gcc"]
