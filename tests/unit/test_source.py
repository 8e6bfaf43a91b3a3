"""Debian's source, verified and unpacked, and builds of it: everything up to the compiler."""

from __future__ import annotations

import json
import platform
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from pytest_spapr.bisect import making
from pytest_spapr.builds import recipe, store, toolchain
from pytest_spapr.builds import source as builds
from pytest_spapr.cache import Cache, Entry
from pytest_spapr.debian.apt import SOURCE, AptState, Package
from pytest_spapr.debian.source import unpack_source, version_of
from pytest_spapr.errors import BuildError, SpaprError, VerificationError
from pytest_spapr.progress import NullProgress
from tests.unit.debian_archive import HAS_APT, Archive, Signer, source

pytestmark = pytest.mark.skipif(not HAS_APT or not shutil.which("patch"), reason="no apt, gpg or patch here")

FIX = "--- a/hw/drc.c\n+++ b/hw/drc.c\n@@ -1,2 +1,2 @@\n one\n-two\n+three\n"


@pytest.fixture
def archive(tmp_path: Path, signer: Signer) -> Archive:
    made = Archive(tmp_path / "mirror", signer)
    made.add_source(source({"hw/drc.c": b"one\ntwo\n"}, {"fix.patch": FIX}))
    made.publish()
    return made


def _fetch(tmp_path: Path, archive: Archive) -> dict[Package, Path]:
    cache = Cache(tmp_path / "cache")
    keyring = archive.signer.keyring
    apt = AptState(cache, archive.url, ["test"], SOURCE, NullProgress(), keyring=keyring, sleep=lambda _seconds: None)
    return apt.fetch_source("qemu")


def test_a_source_is_fetched_once_and_unpacked_with_debians_patches(tmp_path: Path, archive: Archive) -> None:
    _fetch(tmp_path, archive)
    shutil.rmtree(archive.root)
    files = _fetch(tmp_path, archive)
    assert version_of(files) == "1:5.2-1"
    unpack_source(files, tmp_path / "tree", ["patch"], NullProgress())
    assert (tmp_path / "tree/hw/drc.c").read_text() == "one\nthree\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cache", "tree"]


@pytest.mark.parametrize("name", ["qemu_5.2-1.dsc", "qemu_5.2.orig.tar.xz", "qemu_5.2-1.debian.tar.xz"])
def test_a_source_that_is_not_the_signed_one_is_refused(tmp_path: Path, archive: Archive, name: str) -> None:
    path = archive.root / "pool" / name
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(VerificationError, match="does not match its signed hash"):
        _fetch(tmp_path, archive)


def test_a_source_that_was_changed_in_the_cache_is_fetched_again(tmp_path: Path, archive: Archive) -> None:
    path = next(path for path in _fetch(tmp_path, archive).values() if ".orig." in path.name)
    whole = path.read_bytes()
    path.write_bytes(b"x" * len(whole))
    _fetch(tmp_path, archive)
    assert path.read_bytes() == whole


def test_an_index_of_sources_that_is_not_the_signed_one_is_refused(tmp_path: Path, archive: Archive) -> None:
    index = archive.root / "dists/test/main/source/Sources"
    index.write_bytes(index.read_bytes().replace(b"Version: 1:5.2", b"Version: 1:6.2"))
    with pytest.raises(VerificationError, match="does not match its signed hash"):
        _fetch(tmp_path, archive)


def test_a_patch_of_debians_that_does_not_apply_is_told(tmp_path: Path, archive: Archive) -> None:
    archive.add_source(source({"hw/drc.c": b"other\n"}, {"fix.patch": FIX}, "1:5.3-1"), "1:5.3-1")
    archive.publish()
    with pytest.raises(VerificationError, match=r"Debian's patch fix\.patch does not apply to Debian's source: (.|\n)*FAILED"):
        unpack_source(_fetch(tmp_path, archive), tmp_path / "tree", ["patch"], NullProgress())


def test_a_member_outside_of_the_source_is_refused(tmp_path: Path, archive: Archive) -> None:
    archive.add_source(source({"../../evil": b"x"}, {}, "1:5.3-1"), "1:5.3-1")
    archive.publish()
    with pytest.raises(VerificationError, match=r"has a member that is none of a source tree's: qemu-5\.3/\.\./\.\./evil"):
        unpack_source(_fetch(tmp_path, archive), tmp_path / "tree/tree", ["patch"], NullProgress())
    assert not (tmp_path / "evil").exists()


@pytest.mark.parametrize(
    ("wanted", "name", "patch", "says"),
    [
        ("4.2", "mine", None, r"no source called '4\.2': known are 5\.2, 7\.2"),
        ("7.2", "7.2", None, r"7\.2 is the name of a packaged build"),
        ("7.2", "../x", None, r"'\.\./x' cannot name a build"),
        ("7.2", "mine", "nonesuch.patch", r"nonesuch\.patch: No such file or directory\. Give the file of a patch"),
    ],
)
def test_what_cannot_be_built_is_told_before_anything_is_fetched(
    tmp_path: Path, wanted: str, name: str, patch: str | None, says: str
) -> None:
    def mirror() -> str:
        raise AssertionError("asked for a mirror")

    with pytest.raises(BuildError, match=says) as caught:
        builds.build(wanted, name, [Path(patch)] if patch else [], Cache(tmp_path / "cache"), mirror, NullProgress(), jobs=1)
    assert isinstance(caught.value, SpaprError)
    assert not (tmp_path / "cache").exists()


class Heard(NullProgress):
    def __init__(self) -> None:
        self.waits = threading.Event()

    def phase(self, text: str) -> None:
        if text.startswith("waiting for another run that uses"):
            self.waits.set()


@pytest.fixture
def kept(tmp_path: Path) -> Cache:
    """A cache with a toolchain and a source, as far as a build looks at them before it compiles."""
    cache, here = Cache(tmp_path / "cache"), store.architecture()
    suites = {"+".join(how.toolchain) for how in (recipe.RECIPES["7.2"], recipe.for_tree("7.2.0"))}
    for key in {f"{names}-{here}" for names in suites}:
        place = cache.directory(toolchain.KIND, key)
        facts = {"format": toolchain._FORMAT, "place": str(place), "architecture": here, "packages": {}}
        (place / toolchain._MANIFEST).write_text(json.dumps(facts))
    place = cache.directory(builds.KIND, "qemu-7.2")
    (place / "pristine").mkdir()
    (place / builds._MANIFEST).write_text(json.dumps({"version": "7.2", "files": {}, "firmware": "1"}))
    return cache


def _debians(cache: Cache, _root: Path) -> None:
    builds.build("7.2", "mine", [], cache, str, NullProgress(), jobs=1)


def _of_git(cache: Cache, root: Path) -> None:
    (root / "src").mkdir()
    (root / "src" / "VERSION").write_text("7.2.0\n")
    (root / "src" / "configure").touch()
    making.Making("qemu", 1).make(root, cache, str, NullProgress())


@pytest.mark.skipif(platform.machine() not in ("x86_64", "ppc64le", "aarch64"), reason="no builds for this machine")
@pytest.mark.parametrize(
    ("build", "used"),
    [(_debians, [toolchain.KIND, builds.KIND]), (_of_git, [toolchain.KIND])],
    ids=["Debian's source", "a tree of git"],
)
def test_what_a_build_uses_is_removed_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kept: Cache, build: Callable[[Cache, Path], None], used: list[str]
) -> None:
    removers: list[threading.Thread] = []

    def compile_it(*_: object, **__: object) -> None:
        for entry in present():
            heard = Heard()
            removers.append(threading.Thread(target=builds.remove_tree, args=(kept, entry, heard)))
            removers[-1].start()
            assert heard.waits.wait(20)
            assert entry.path.is_dir()
        raise BuildError("that is enough")

    tools = recipe.RECIPES["7.2"] if build is _debians else recipe.for_tree("7.2.0")

    def present() -> list[Entry]:
        names = ("qemu-7.2", f"{'+'.join(tools.toolchain)}-{store.architecture()}")
        return [entry for entry in builds.trees(kept) if entry.kind in used and entry.key in names]

    for module in (builds, making):
        monkeypatch.setattr(module.Maker, "make", compile_it)
    with pytest.raises(BuildError, match="that is enough"):
        build(kept, tmp_path)
    for remover in removers:
        remover.join(20)
    assert len(removers) == len(used)
    assert present() == []


@pytest.mark.skipif(platform.machine() not in ("x86_64", "ppc64le", "aarch64"), reason="no builds for this machine")
def test_a_source_that_is_read_is_not_removed(kept: Cache) -> None:
    with builds.pristine("7.2", kept) as tree:
        assert tree == kept.entry(builds.KIND, "qemu-7.2") / "pristine"
        assert not kept.remove_unused(builds.KIND, "qemu-7.2")
    assert kept.remove_unused(builds.KIND, "qemu-7.2")
    with pytest.raises(BuildError, match=r"--source=7\.2` gets it"), builds.pristine("7.2", kept):
        pass
