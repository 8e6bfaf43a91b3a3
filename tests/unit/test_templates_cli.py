"""``spapr template``."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from pytest_spapr import cli
from pytest_spapr.cache import Cache
from pytest_spapr.templates import store

from .test_templates import FACTS, write


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cache:
    monkeypatch.delenv("SPAPR_TEMPLATE_SPACE", raising=False)
    monkeypatch.setenv("SPAPR_CACHE_DIR", str(tmp_path / "cache"))
    cache = Cache(tmp_path / "cache")
    firmware = tmp_path / "vof.bin"
    firmware.write_bytes(b"firmware")
    for age, key in enumerate(("newer", "older")):
        write(cache, key, firmware, used=1_700_000_000 - age)
    with cache.publish(store.KIND, "unsound") as directory:
        store.write_unsound(directory, FACTS, "a clone hangs")
    os.utime(cache.entry(store.KIND, "unsound"), (0, 0))
    return cache


def keys(cache: Cache) -> list[str]:
    return [entry.key for entry in cache.entries(store.KIND)]


def test_all_are_listed_with_what_is_to_be_said_about_them(cache: Cache, capsys: pytest.CaptureFixture[str]) -> None:
    held = store.find(cache, "newer")
    assert held is not None
    older = cache.entry(store.KIND, "older")
    (older / store.MANIFEST).unlink()
    os.utime(older, (1_600_000_000, 1_600_000_000))
    assert cli.main(["template", "list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    held.close()
    assert lines[0].startswith("newer     0.1 MB  used 2023-11-1")
    assert lines[0].endswith("  in use")
    assert lines[1] == "    default; QEMU 11.1; image debian-12, Linux 6.1"
    assert lines[2].startswith("older     0.1 MB  used 2020-09-1")
    assert lines[2].endswith("  is damaged: template.json: No such file or directory")
    assert lines[3].startswith("unsound  ")
    assert lines[3].endswith("  a clone hangs")
    assert lines[4] == "    default; QEMU 11.1; image debian-12, Linux 6.1"
    assert lines[5] == f"3 in {cache.root}: 0.1 MB of 8589.9 MB"


def test_none_are_listed_as_none(cache: Cache, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["template", "remove", "--all"]) == 0
    assert keys(cache) == []
    capsys.readouterr()
    assert cli.main(["template", "list"]) == 0
    assert capsys.readouterr().out == f"0 in {cache.root}: 0.0 MB of 8589.9 MB\n"
    assert cli.main(["template", "remove", "--all"]) == 0


def test_those_named_are_removed(cache: Cache, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["template", "remove", "older", "unsound"]) == 0
    assert keys(cache) == ["newer"]
    assert capsys.readouterr().out.splitlines()[0] == f"removed {cache.entry(store.KIND, 'older')} (0.1 MB)"


def test_those_in_use_are_kept_and_named(cache: Cache, capsys: pytest.CaptureFixture[str]) -> None:
    held = store.find(cache, "newer")
    assert held is not None
    assert cli.main(["template", "remove", "--all"]) == 2
    assert capsys.readouterr().err == "spapr: in use by a run, and kept: newer\n"
    assert keys(cache) == ["newer"], "the others are gone"
    assert cli.main(["template", "gc", "--max-size", "0"]) == 0
    assert capsys.readouterr().out == "1 left, 0.1 MB of 0.0 MB: those in use were kept\n"
    held.close()


def test_an_unknown_key_removes_nothing(cache: Cache, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["template", "remove", "older", "nonesuch"]) == 2
    assert "no template in the cache" in capsys.readouterr().err
    assert len(keys(cache)) == 3


def test_gc_keeps_what_fits(cache: Cache, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert cli.main(["template", "gc"]) == 0
    assert len(keys(cache)) == 3
    assert cli.main(["template", "gc", "--max-size", "100K"]) == 0
    out = capsys.readouterr().out
    assert f"removed {cache.entry(store.KIND, 'older')} (0.1 MB)" in out
    assert out.splitlines()[-1] == "2 left, 0.1 MB of 0.1 MB"
    monkeypatch.setenv("SPAPR_TEMPLATE_SPACE", "10")
    assert cli.main(["template", "gc"]) == 0
    assert keys(cache) == []


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["gc", "--max-size", "much"], "--max-size: 'much' is no size"),
        (["remove", "../images"], "is called '../images'"),
    ],
)
def test_an_error_is_one_clear_message_and_status_2(
    arguments: list[str], says: str, capsys: pytest.CaptureFixture[str], cache: Cache
) -> None:
    assert cli.main(["template", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("spapr: ")
    assert says in err
    assert len(keys(cache)) == 3


@pytest.mark.parametrize("arguments", [[], ["remove"], ["remove", "--all", "older"], ["gc", "--max-size"]])
def test_wrong_usage_is_status_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(["template", *arguments])
    assert caught.value.code == 2
    assert "usage: spapr template" in capsys.readouterr().err


def test_templates_are_private_to_their_owner(cache: Cache) -> None:
    """A guest's memory holds its keys."""
    for path in (cache.root, cache.root / store.KIND, cache.entry(store.KIND, "newer")):
        assert stat.S_IMODE(path.stat().st_mode) == 0o700
