"""The image for tasks in containers, with a podman that is none: what it is given, and words for what cannot be made."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from ci import container_image
from ci.pages import fetch

#: It says what it was asked for; {image} is what it does for `podman image inspect`, {take} for `podman import`.
_PODMAN = """#!/bin/sh
echo "$1 $2 $3" >>{asked}
case "$1 $2" in
"image inspect") {image} ;;
"import --quiet") {take} ;;
esac
"""


@pytest.fixture
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setattr(container_image, "_write", lambda archive, suite, progress: archive.write_text(suite))
    monkeypatch.setattr(container_image, "_SUITES", {sys.version_info[:2]: "bookworm"})
    return tmp_path / "asked"


def make_podman(asked: Path, *, image: str = "echo old", take: str = "true") -> None:
    file = asked.parent / "podman"
    file.write_text(_PODMAN.format(asked=asked, image=image, take=take))
    file.chmod(0o755)


def test_the_image_takes_the_place_of_the_one_before(asked: Path, capfd: pytest.CaptureFixture[str]) -> None:
    make_podman(asked)
    assert container_image.main(["mine"]) == 0
    assert capfd.readouterr().out == "mine: Debian bookworm. ci/nightly --podman=mine\n"
    assert [line.split()[:2] for line in asked.read_text().splitlines()] == [
        ["image", "inspect"],
        ["import", "--quiet"],
        ["image", "rm"],
    ]
    assert asked.read_text().endswith("image rm old\n")


def test_the_first_one_takes_nobody_s_place(asked: Path) -> None:
    make_podman(asked, image="exit 125")
    assert container_image.main([]) == 0
    assert "image rm" not in asked.read_text()


def test_what_podman_does_not_take_is_told(asked: Path, capfd: pytest.CaptureFixture[str]) -> None:
    make_podman(asked, take="echo no space >&2; exit 125")
    assert container_image.main([]) == 2
    assert "ci/container-image: podman import ended with status 125: no space\n" in capfd.readouterr().err
    assert "image rm" not in asked.read_text()


def test_a_python_that_no_release_has_is_told(
    asked: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    make_podman(asked)
    monkeypatch.setattr(container_image, "_SUITES", {(2, 7): "buster"})
    assert container_image.main([]) == 2
    assert "(buster has 2.7): bring an image of your own" in capfd.readouterr().err
    assert not asked.exists()


def test_no_podman_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert container_image.main([]) == 2
    assert "there is no podman on PATH. Install it" in capfd.readouterr().err


def test_nothing_is_fetched_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    make_podman(tmp_path / "asked")
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setattr(container_image, "_SUITES", {sys.version_info[:2]: "bookworm"})
    monkeypatch.setattr(container_image, "AptState", None)
    monkeypatch.setenv("SPAPR_OFFLINE", "yes")
    monkeypatch.setenv("SPAPR_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("SPAPR_DEBIAN_MIRROR", "http://mirror.invalid/debian")
    assert container_image.main([]) == 2
    assert "SPAPR_OFFLINE=yes forbids to fetch it" in capfd.readouterr().err


def test_no_browser_is_fetched_offline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(fetch, "found", lambda: None)
    monkeypatch.setattr(fetch, "AptState", None)
    monkeypatch.setenv("SPAPR_OFFLINE", "yes")
    monkeypatch.setenv("SPAPR_CACHE_DIR", str(tmp_path))
    monkeypatch.setenv("SPAPR_DEBIAN_MIRROR", "http://mirror.invalid/debian")
    assert fetch.main() == 2
    assert "a Chromium is not in the cache, and SPAPR_OFFLINE=yes forbids to fetch it" in capfd.readouterr().err
