from __future__ import annotations

import json
from pathlib import Path

import pytest

from pytest_spapr import cli
from pytest_spapr.cache import Cache
from pytest_spapr.hotplug.defects import KNOWN_DEFECTS
from pytest_spapr.images import store
from tests.unit.cached_image import publish_image


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cache:
    for name in ("SPAPR_DEBIAN_MIRROR", "SPAPR_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SPAPR_CACHE_DIR", str(tmp_path / "cache"))
    return Cache(tmp_path / "cache")


@pytest.fixture
def key(cache: Cache) -> str:
    """An image in the cache, as the recipe debian-12 would give it."""
    return publish_image(cache)


def test_a_built_image_is_listed_shown_verified_and_removed(key: str, cache: Cache, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["image", "list"]) == 0
    assert "debian-12                    Linux 6.1-test, 64 KiB pages" in capsys.readouterr().out
    assert cli.main(["image", "show"]) == 0
    assert "Linux 6.1-test, 64 KiB pages" in capsys.readouterr().out
    assert cli.main(["image", "show", key, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["packages"] == {"busybox": "1"}
    assert cli.main(["image", "verify"]) == 0
    assert cli.main(["image", "build", "--offline"]) == 0, "it is there"
    assert cli.main(["image", "remove", "debian-12"]) == 0
    assert cache.entries(store.KIND) == []


def test_an_image_that_does_not_say_what_it_is_made_of_is_shown(
    key: str, cache: Cache, capsys: pytest.CaptureFixture[str]
) -> None:
    path = cache.entry(store.KIND, key) / store.MANIFEST
    path.write_text(json.dumps({fact: value for fact, value in json.loads(path.read_text()).items() if fact != "parts"}))
    assert cli.main(["image", "show"]) == 0
    said = capsys.readouterr().out
    assert "vmlinux" in said
    assert "initramfs:" not in said


def test_a_changed_image_fails_to_verify(key: str, cache: Cache, capsys: pytest.CaptureFixture[str]) -> None:
    (cache.entry(store.KIND, key) / store.VMLINUX).write_bytes(b"ELF")
    assert cli.main(["image", "verify"]) == 2
    assert "vmlinux was changed" in capsys.readouterr().err


def test_a_damaged_image_is_listed_as_such_and_can_be_removed(key: str, cache: Cache, capsys: pytest.CaptureFixture[str]) -> None:
    (cache.entry(store.KIND, key) / store.MANIFEST).write_text("{")
    assert cli.main(["image", "list"]) == 0
    assert f"damaged: spapr image remove {key}" in capsys.readouterr().out
    assert cli.main(["image", "remove", key]) == 0


def test_what_is_not_there_is_listed_with_the_command_that_makes_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["image", "list"]) == 0
    assert (
        "debian-13                    not built: spapr image build debian-13  (Debian 13's kernel: Linux 6.12"
        in capsys.readouterr().out
    )
    assert cli.main(["qemu", "list"]) == 0
    assert "not installed: spapr qemu install 11.1" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["image", "build", "nonesuch"], "no guest image is called 'nonesuch': known are debian-12"),
        (["image", "build", "--offline"], "--spapr-offline forbids"),
        (["image", "build", "--debian-mirror", "nowhere"], "'nowhere' is not an http:, https: or file: URL"),
        (["image", "show"], "debian-12 is not in the cache"),
        (["image", "verify", "/"], "/ is not a guest image"),
        (["image", "remove", "nonesuch"], "no guest image in the cache"),
        (["qemu", "install", "--offline"], "--spapr-offline forbids"),
        (["qemu", "install", "0.9"], "no QEMU build is called '0.9'"),
    ],
)
def test_an_error_is_one_clear_message_and_status_2(arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("spapr: ")
    assert says in err
    assert "Traceback" not in err


@pytest.mark.parametrize("arguments", [[], ["image"], ["image", "frobnicate"], ["image", "remove"]])
def test_wrong_usage_is_status_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(arguments)
    assert caught.value.code == 2
    assert "usage: spapr" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [[], ["image"], ["image", "build"], ["qemu"], ["qemu", "install"]])
def test_help_is_there(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main([*arguments, "-h"])
    assert caught.value.code == 0
    assert "usage: spapr" in capsys.readouterr().out


def test_known_defects_are_listed_and_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["defects"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == list(KNOWN_DEFECTS)
    assert cli.main(["defects", "tcg-core-removal"]) == 0
    told = capsys.readouterr().out
    for words in ("QEMU 5.2.0 and 7.2.22, under TCG", "QEMU 5.2 or earlier", "QEMU 10.2", "QEMU dies", "-qmp stdio"):
        assert words in told
    assert cli.main(["defects", "dimm-first-lmb-silent"]) == 0
    assert "needs a guest" in capsys.readouterr().out


def test_an_unknown_defect_is_an_error_that_lists_those_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["defects", "no-such"]) == 2
    assert "no known defect is called 'no-such'; there are tcg-core-removal, " in capsys.readouterr().err
