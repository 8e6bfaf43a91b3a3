from __future__ import annotations

import json
from pathlib import Path

import pytest

from pytest_spapr.builds import packages
from pytest_spapr.cache import Cache
from pytest_spapr.errors import BuildError, MirrorError, VerificationError
from tests.unit.debian_archive import HAS_APT, Archive, Signer, deb

pytestmark = pytest.mark.skipif(not HAS_APT, reason="no apt or no gpg here")

TRIPLET = "x86_64-linux-gnu"


@pytest.fixture
def archive(tmp_path: Path, signer: Signer, monkeypatch: pytest.MonkeyPatch) -> Archive:
    made = Archive(tmp_path / "mirror", signer)
    made.add("libc6", deb({f"./usr/lib/{TRIPLET}/ld-linux-x86-64.so.2": b"loader"}))
    made.add("qemu-system-data", deb({"./usr/share/qemu/slof.bin": b"slof", "./usr/share/doc/x": b"words"}))
    binary = {"./usr/bin/qemu-system-ppc64": b"qemu"}
    made.add("qemu-system-ppc", deb(binary, dict.fromkeys(binary, 0o755)), "1:7.2+dfsg-7", depends="libc6, qemu-system-data")
    made.publish()
    monkeypatch.setattr("pytest_spapr.debian.apt._KEYRINGS", (signer.keyring,))
    monkeypatch.setattr(packages, "SOURCES", {"7.2": packages.Source(("test",))})
    return made


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cache")


def test_a_build_runs_through_its_own_loader_with_its_own_firmware(cache: Cache, archive: Archive) -> None:
    build = packages.fetch("7.2", cache, archive.url, machine="x86_64")
    prefix = str(build.prefix)
    assert build.package_version == "1:7.2+dfsg-7"
    assert build.command[0] == f"{prefix}/usr/lib/{TRIPLET}/ld-linux-x86-64.so.2"
    assert build.command[1] == "--library-path"
    assert f"{prefix}/usr/lib/{TRIPLET}" in build.command[2].split(":")
    assert build.command[3:] == (str(build.binary), "-L", f"{prefix}/usr/share/qemu")
    assert build.env == {"QEMU_MODULE_DIR": f"{prefix}/usr/lib/{TRIPLET}/qemu"}
    assert (build.prefix / "usr/share/qemu/slof.bin").read_bytes() == b"slof"
    assert not (build.prefix / "usr/share/doc").exists()


def test_a_loader_from_before_the_usr_merge_is_found(cache: Cache, archive: Archive) -> None:
    archive.add("libc6", deb({f"./lib/{TRIPLET}/ld-linux-x86-64.so.2": b"loader"}), "2.0")
    archive.publish()
    build = packages.fetch("7.2", cache, archive.url, machine="x86_64")
    assert build.command[0] == f"{build.prefix}/lib/{TRIPLET}/ld-linux-x86-64.so.2"


def test_what_a_suite_no_longer_carries_for_an_architecture_is_said(cache: Cache, archive: Archive) -> None:
    packages.SOURCES["7.2"] = packages.Source(("test",), architectures=("arm64",))  # type: ignore[index]
    with pytest.raises(BuildError, match=r"no packages of QEMU 7\.2 for amd64.*arm64 only.*spapr qemu build --source=7\.2"):
        packages.fetch("7.2", cache, archive.url, machine="x86_64")


def test_a_cached_build_needs_no_mirror_and_can_be_moved(cache: Cache, archive: Archive, tmp_path: Path) -> None:
    packages.fetch("7.2", cache, archive.url, machine="x86_64")
    cache.root.rename(tmp_path / "moved")
    build = packages.fetch("7.2", Cache(tmp_path / "moved"), None, machine="x86_64")
    assert all(str(cache.root) not in part for part in build.command)
    assert Path(build.command[0]).exists()


def test_a_build_that_fails_leaves_nothing(cache: Cache, archive: Archive) -> None:
    archive.add("qemu-system-ppc", b"no package at all", "1:9", depends="libc6")
    archive.publish()
    with pytest.raises(VerificationError, match="not a whole Debian package"):
        packages.fetch("7.2", cache, archive.url, machine="x86_64")
    assert cache.entries("qemu") == []
    assert list((cache.root / "tmp").iterdir()) == []


def test_without_a_mirror_only_the_cache_is_asked(cache: Cache) -> None:
    with pytest.raises(MirrorError, match=r"7\.2 is not in the cache"):
        packages.fetch("7.2", cache, None, machine="x86_64")


def test_unknown_names_and_machines_say_what_there_is(cache: Cache) -> None:
    with pytest.raises(BuildError, match=r"no QEMU build is called '1\.0'; there are .*7\.2.*--spapr-qemu=PATH"):
        packages.fetch("1.0", cache, None, machine="x86_64")
    with pytest.raises(BuildError, match=r"architecture vax .*--spapr-qemu=PATH"):
        packages.fetch("7.2", cache, None, machine="vax")


@pytest.mark.parametrize("manifest", ["", "{", "{}", json.dumps({"packages": {}})])
def test_a_damaged_entry_says_what_to_do(cache: Cache, manifest: str) -> None:
    with cache.publish("qemu", "7.2-amd64") as scratch:
        (scratch / "build.json").write_text(manifest)
    with pytest.raises(BuildError, match=r"is damaged.*spapr qemu remove 7\.2"):
        packages.fetch("7.2", cache, None, machine="x86_64")


def test_an_entry_without_its_binary_is_damaged(cache: Cache, archive: Archive) -> None:
    packages.fetch("7.2", cache, archive.url, machine="x86_64").binary.unlink()
    with pytest.raises(BuildError, match="is damaged"):
        packages.fetch("7.2", cache, None, machine="x86_64")
