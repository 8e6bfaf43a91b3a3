"""``spapr qemu``: what is stored is listed, shown and removed."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping
from pathlib import Path

import pytest

from pytest_spapr import cli
from pytest_spapr.builds import store
from pytest_spapr.cache import Cache

pytestmark = pytest.mark.skipif(platform.machine() not in ("x86_64", "ppc64le", "aarch64"), reason="no builds for this machine")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cache:
    for name in ("SPAPR_DEBIAN_MIRROR", "SPAPR_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SPAPR_CACHE_DIR", str(tmp_path / "cache"))
    made = Cache(tmp_path / "cache")
    facts = {
        "source": {"name": "5.2", "version": "1:5.2-1", "files": {"qemu_5.2-1.dsc": "ab12"}},
        "patches": [{"name": "timer.patch", "sha256": "cd34"}],
        "configure": ["--target-list=ppc64-softmmu"],
        "packages": {"gcc": "4:12"},
    }
    _store(made, "timer", facts)
    _store(made, "7.2", {"packages": {"qemu-system-ppc": "1:7.2-7"}})
    return made


def _store(cache: Cache, name: str, facts: Mapping[str, object]) -> None:
    here = store.architecture()
    loader = f"root/lib/{store.triplet_of(here)}/{store.loader_name(here)}"
    with cache.publish(store.KIND, store.key_of(name, here)) as scratch:
        for path in (loader, f"root/{store.BINARY}"):
            (scratch / path).parent.mkdir(parents=True)
            (scratch / path).write_bytes(b"elf")
        (scratch / store.MANIFEST).write_text(json.dumps({"format": 1, "architecture": here, **facts}))


def test_packaged_and_built_ones_are_listed(capsys: pytest.CaptureFixture[str], cache: Cache) -> None:
    (cache.entry(store.KIND, store.key_of("7.2", store.architecture())) / "root" / store.BINARY).unlink()
    assert cli.main(["qemu", "list"]) == 0
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
    assert list(lines) == ["5.2", "7.2", "10.0", "11.1", "timer"]
    assert "not installed: spapr qemu install 5.2" in lines["5.2"]
    assert "damaged: spapr qemu remove 7.2" in lines["7.2"]
    assert "1:5.2-1, built from source with timer.patch" in lines["timer"]


def test_show_tells_source_patches_with_hashes_and_how_it_was_configured(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["qemu", "show", "timer"]) == 0
    shown = capsys.readouterr().out
    for words in (
        "Debian's QEMU 1:5.2-1",
        "qemu_5.2-1.dsc  sha256 ab12",
        "timer.patch  sha256 cd34",
        "--target-list=ppc64-softmmu",
    ):
        assert words in shown
    assert cli.main(["qemu", "show", "timer", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["patches"] == [{"name": "timer.patch", "sha256": "cd34"}]
    assert facts["binary"].endswith(store.BINARY)


def test_builds_and_trees_are_removed(capsys: pytest.CaptureFixture[str], cache: Cache) -> None:
    (cache.directory("build", "5.2-amd64") / "build.log").write_text("x")
    assert cli.main(["qemu", "list"]) == 0
    assert "spapr qemu remove --trees" in capsys.readouterr().out
    assert cli.main(["qemu", "remove", "timer", "--trees"]) == 0
    assert "removed timer" in capsys.readouterr().out
    assert store.names(cache) == ["7.2"]
    assert not cache.entries("build")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["show", "nonesuch"], "no QEMU build in the cache"),
        (["remove", "7.2", "nonesuch"], "is called 'nonesuch': see `spapr qemu list`"),
        (["remove"], "nothing to remove is named"),
        (["build", "--source=1.0", "--name=x"], "no source called '1.0'"),
        (["build", "--source=7.2", "--name=x", "--cache-dir=/a b"], "takes no directory with blanks or colons"),
    ],
)
def test_mistakes_are_told(capsys: pytest.CaptureFixture[str], cache: Cache, arguments: list[str], says: str) -> None:
    assert cli.main(["qemu", *arguments]) == 2
    assert says in capsys.readouterr().err
    assert store.names(cache) == ["7.2", "timer"]
