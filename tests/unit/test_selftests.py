"""The kernel's selftests: where they come from, and what is said where they cannot be had."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pytest_spapr import config, supply
from pytest_spapr.cache import Cache
from pytest_spapr.errors import ImageError, SpaprError, VerificationError
from pytest_spapr.images import selftests
from pytest_spapr.progress import NullProgress
from pytest_spapr.supply import Unavailable
from tests.unit.debian_archive import HAS_APT, Archive, Signer, source

needs_apt = pytest.mark.skipif(not HAS_APT, reason="no apt or gpg here")

BELOW = "tools/testing/selftests"
SCRIPTS = {"cpu-hotplug/cpu-on-off-test.sh": b"echo cpu\n", "memory-hotplug/mem-on-off-test.sh": b"echo memory\n"}
ARCHIVE = "linux_6.1.9.orig.tar.xz"


def image(version: str = "6.1.7-1", package: str = "linux-image-") -> Any:
    """Return what the selftests need to know of an image."""
    return SimpleNamespace(name="debian-12", kernel_release="6.1.0-test", packages={f"{package}6.1.0-test": version})


def publish(directory: Path, signer: Signer, scripts: dict[str, bytes]) -> Archive:
    """Publish a kernel's source with these scripts, and others beside them."""
    files = {"Makefile": b"", f"{BELOW}/cpu-hotplug/Makefile": b"", **{f"{BELOW}/{name}": data for name, data in scripts.items()}}
    made = Archive(directory, signer)
    made.add_source(source(files, {}, "6.1.9-1", "linux"), "6.1.9-1", "linux")
    made.publish()
    return made


@pytest.fixture
def archive(tmp_path: Path, signer: Signer, monkeypatch: pytest.MonkeyPatch) -> Archive:
    """A mirror with a kernel's source, whose keys the host trusts."""
    monkeypatch.setattr("pytest_spapr.debian.apt.host_keyring", lambda: signer.keyring)
    monkeypatch.setattr("pytest_spapr.images.recipe.load", lambda _name: SimpleNamespace(kernel_suites=("test",)))
    return publish(tmp_path / "mirror", signer, SCRIPTS)


@needs_apt
@pytest.mark.parametrize("package", ["linux-image-", "linux-binary-"])
def test_the_scripts_are_fetched_once_and_nothing_else_stays(tmp_path: Path, archive: Archive, package: str) -> None:
    cache = Cache(tmp_path / "cache")
    found = selftests.fetch(cache, archive.url, image(package=package))
    assert {name: (found.directory / name).read_bytes() for name in SCRIPTS} == SCRIPTS
    assert found.source == "6.1.9-1"
    told = json.loads((found.directory / "selftests.json").read_text())
    assert (told["kernel"], told["file"]) == ("6.1.7-1", ARCHIVE)
    assert len(told["sha256"]) == 64
    assert not list(tmp_path.glob(f"cache/**/{ARCHIVE}"))
    shutil.rmtree(archive.root)
    assert selftests.fetch(cache, archive.url, image(package=package)) == found


@needs_apt
def test_a_source_that_is_not_the_signed_one_gives_no_scripts(tmp_path: Path, archive: Archive) -> None:
    path = archive.root / "pool" / ARCHIVE
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(VerificationError, match="does not match its signed hash"):
        selftests.fetch(Cache(tmp_path / "cache"), archive.url, image())
    assert selftests.find(Cache(tmp_path / "cache"), image()) is None


@needs_apt
def test_a_source_without_a_script_is_refused(tmp_path: Path, signer: Signer, archive: Archive) -> None:
    other = publish(tmp_path / "other", signer, dict(list(SCRIPTS.items())[:1]))
    assert archive.url != other.url
    with pytest.raises(VerificationError, match=r"has no memory-hotplug/mem-on-off-test\.sh"):
        selftests.fetch(Cache(tmp_path / "cache"), other.url, image())


@needs_apt
def test_a_suite_that_has_moved_on_to_another_series_is_told(tmp_path: Path, archive: Archive) -> None:
    with pytest.raises(ImageError, match=r"has the kernel 6\.0\.7-1, but test has 6\.1\.9-1 by now"):
        selftests.fetch(Cache(tmp_path / "cache"), archive.url, image("6.0.7-1"))


def test_damaged_selftests_are_told(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    with cache.publish(selftests.KIND, "6.1.7-1") as entry:
        (entry / "selftests.json").write_text('{"source": "6.1.9-1"}')
    with pytest.raises(ImageError, match=r"damaged \(it lacks cpu-hotplug"):
        selftests.find(cache, image())


@pytest.mark.parametrize(
    ("given", "fetched", "words"),
    [
        ({}, None, "nothing may be fetched for this run"),
        ({"image": "debian-12", "offline": True}, None, "nothing may be fetched for this run"),
        ({"image": "debian-12"}, ImageError("the suite has moved on"), "the suite has moved on"),
    ],
)
def test_without_selftests_the_reason_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: dict[str, Any], fetched: SpaprError | None, words: str
) -> None:
    def fetch(*_arguments: object) -> None:
        assert fetched is not None
        raise fetched

    monkeypatch.setattr(selftests, "fetch", fetch)
    monkeypatch.setattr("pytest_spapr.debian.mirror.find_mirror", lambda setting: setting or "http://apt.invalid/debian")
    with pytest.raises(Unavailable, match=f"no selftests of the guest's kernel 6.1.0-test here: .*{words}"):
        supply.supply_selftests(config.read(given, environment={}), Cache(tmp_path), image(), NullProgress())


def test_the_selftests_of_a_kernel_of_the_users_own_are_not_known(tmp_path: Path) -> None:
    own = SimpleNamespace(name="debian-12+6.99", kernel_release="6.99", packages={"linux-image-6.1.0-test": "6.1.7-1"})
    with pytest.raises(Unavailable, match=r"the kernel 6\.99 of the image debian-12\+6\.99 is none of Debian's"):
        supply.supply_selftests(config.read({}, environment={}), Cache(tmp_path), own, NullProgress())  # type: ignore[arg-type]
