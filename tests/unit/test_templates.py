"""The store of templates: what is whole is found, what is not is told, and what a run uses stays."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pytest_spapr.cache import Cache
from pytest_spapr.errors import CacheError
from pytest_spapr.templates import store
from pytest_spapr.templates.store import BOOT, DEVICES, MANIFEST, RAM, Damaged, NoTemplate

KEY = "0123456789abcdef0123"
FACTS = {"shape": "default", "build": "QEMU 11.1", "image": "debian-12", "kernel_release": "6.1", "facts": {}, "made": 1.0}


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cache")


@pytest.fixture
def firmware(tmp_path: Path) -> Path:
    path = tmp_path / "vof.bin"
    path.write_bytes(b"firmware")
    return path


@pytest.fixture
def template(cache: Cache, firmware: Path) -> Path:
    return write(cache, KEY, firmware)


def write(cache: Cache, key: str, firmware: Path, *, used: float | None = None) -> Path:
    with cache.publish(store.KIND, key) as directory:
        (directory / RAM).write_bytes(b"memory" * 10_000)
        (directory / DEVICES).write_bytes(b"devices")
        (directory / BOOT).write_text('[-1.5, "kernel", "Linux version 6.1"]\n')
        store.write_manifest(directory, FACTS, [firmware])
    entry = cache.entry(store.KIND, key)
    if used is not None:
        os.utime(entry, (used, used))
    return entry


@contextmanager
def locked_elsewhere(directory: Path, how: str) -> Iterator[Callable[[], object]]:
    """Have another process lock a template inside the ``with`` block; yield what ends it before."""
    program = (
        "import fcntl, os, sys\n"
        f"fcntl.flock(os.open({str(directory)!r}, os.O_RDONLY), fcntl.{how})\n"
        "print('locked', flush=True)\n"
        "sys.stdin.read()"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "locked\n"
            yield process.communicate
        finally:
            process.kill()


def test_what_was_written_is_found(cache: Cache, template: Path) -> None:
    found = store.find(cache, KEY)
    assert found is not None
    assert found.snapshot.ram == template / RAM
    assert found.snapshot.devices == b"devices"
    assert [(record.time, record.lane, record.text) for record in found.boot] == [(-1.5, "kernel", "Linux version 6.1")]
    assert found.manifest["build"] == "QEMU 11.1"
    found.require_unchanged()
    found.close()
    found.close()


def test_none_is_none(cache: Cache) -> None:
    assert store.find(cache, KEY) is None
    assert store.remove(cache, KEY)
    assert store.listing(cache) == []
    assert store.trim(cache, 0) == []


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def change(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("name", [RAM, DEVICES, BOOT, MANIFEST])
@pytest.mark.parametrize("harm", [cut, change, Path.unlink], ids=["cut off", "changed", "removed"])
def test_damage_of_any_file_is_noticed(cache: Cache, template: Path, name: str, harm: Callable[[Path], None]) -> None:
    harm(template / name)
    if harm is change and name == MANIFEST:
        # One letter of a manifest may be of no matter: here it is.
        (template / name).write_text((template / name).read_text().replace("devices", "Devices"))
    with pytest.raises(Damaged, match=f"the template {template} is "):
        store.find(cache, KEY)
    assert store.remove(cache, KEY), "whoever found it damaged does not hold it"
    assert store.find(cache, KEY) is None


@pytest.mark.parametrize(
    "garbage",
    [b"", b"\xff\xfe\x00", b"null", b"[]", b"7", b'{"format": 1}', b'{"format": 2}', b"[" * 100_000],
    ids=["empty", "no text", "null", "a list", "a number", "another format", "too little", "deep"],
)
def test_a_manifest_that_is_garbage_is_damage(cache: Cache, template: Path, garbage: bytes) -> None:
    (template / MANIFEST).write_bytes(garbage)
    with pytest.raises(Damaged):
        store.find(cache, KEY)
    [listed] = store.listing(cache)
    assert listed.manifest == {}
    assert listed.state.startswith("is ")


@pytest.mark.parametrize("name", ["ram", "files", "firmware"])
def test_a_manifest_of_the_wrong_shape_is_damage(cache: Cache, template: Path, name: str) -> None:
    manifest = json.loads((template / MANIFEST).read_text())
    (template / MANIFEST).write_text(json.dumps({**manifest, name: 5}))
    with pytest.raises(Damaged):
        store.find(cache, KEY)


def test_memory_that_changes_while_it_is_used_is_noticed(cache: Cache, template: Path) -> None:
    found = store.find(cache, KEY)
    assert found is not None
    with (template / RAM).open("r+b") as stream:
        stream.write(b"!")
    with pytest.raises(Damaged, match="ram was changed"):
        found.require_unchanged()
    found.close()


def test_new_firmware_puts_a_template_out_of_date(cache: Cache, template: Path, firmware: Path) -> None:
    firmware.write_bytes(b"FIRMWARE")
    with pytest.raises(Damaged, match=r"out of date: .*vof\.bin was changed"):
        store.find(cache, KEY)


def test_a_template_of_another_user_is_not_used(cache: Cache, template: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 4242)
    with pytest.raises(NoTemplate, match=r"belongs to another user \(uid \d+\): set SPAPR_CACHE_DIR"):
        store.find(cache, KEY)
    assert "belongs to another user" in store.listing(cache)[0].state


def test_a_link_is_not_followed(cache: Cache, template: Path, tmp_path: Path) -> None:
    template.rename(tmp_path / "elsewhere")
    template.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(NoTemplate, match="cannot be used: Not a directory"):
        store.find(cache, KEY)


def test_what_a_run_uses_is_kept(cache: Cache, template: Path) -> None:
    held = store.find(cache, KEY)
    assert held is not None
    assert not store.remove(cache, KEY)
    assert store.trim(cache, 0) == []
    assert [one.state for one in store.listing(cache)] == ["in use"]
    held.close()
    assert [one.state for one in store.listing(cache)] == [""]
    assert store.remove(cache, KEY)


def test_another_process_holds_it_too(cache: Cache, template: Path) -> None:
    with locked_elsewhere(template, "LOCK_SH"):
        assert not store.remove(cache, KEY)
        found = store.find(cache, KEY)
        assert found is not None, "runs share it"
        found.close()
    assert store.remove(cache, KEY)


@pytest.mark.parametrize("again", [True, False], ids=["made anew", "gone"])
def test_what_is_removed_while_one_waits_for_it_is_looked_for_again(
    cache: Cache, template: Path, firmware: Path, again: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lock that is got at last is of a directory that nobody finds any more."""
    found: list[store.Template | None] = []
    seeker = threading.Thread(target=lambda: found.append(store.find(cache, KEY)))
    asked = threading.Event()
    real = fcntl.flock

    def flock(descriptor: int, how: int) -> None:
        asked.set()
        real(descriptor, how)

    with locked_elsewhere(template, "LOCK_EX") as let_go:
        monkeypatch.setattr(fcntl, "flock", flock)
        seeker.start()
        assert asked.wait(10)
        cache.remove(store.KIND, KEY)
        if again:
            write(cache, KEY, firmware)
        assert seeker.is_alive()
        let_go()
        seeker.join(10)
    if not again:
        assert found == [None]
        return
    [template_found] = found
    assert template_found is not None
    assert not store.remove(cache, KEY), "it holds the new one"
    template_found.close()


def test_those_not_used_for_longest_go_first(cache: Cache, firmware: Path) -> None:
    for age, key in enumerate(("newest", "middle", "oldest")):
        write(cache, key, firmware, used=1_000_000 - age)
    size = cache.entries(store.KIND)[0].size
    assert [one.entry.key for one in store.listing(cache)] == ["newest", "middle", "oldest"]
    oldest = store.find(cache, "oldest")
    assert oldest is not None
    oldest.touch()
    oldest.close()
    assert [entry.key for entry in store.trim(cache, 2 * size)] == ["middle"]
    assert [entry.key for entry in store.trim(cache, 2 * size)] == []
    assert [entry.key for entry in store.trim(cache, 0)] == ["oldest", "newest"]
    assert cache.entries(store.KIND) == []


def test_what_cannot_be_removed_does_not_keep_others(cache: Cache, firmware: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for key in ("a", "b"):
        write(cache, key, firmware)
    real = Cache.remove

    def remove(self: Cache, kind: str, key: str) -> bool:
        if key == "a":
            raise PermissionError(13, "Permission denied")
        return real(self, kind, key)

    monkeypatch.setattr(Cache, "remove", remove)
    assert [entry.key for entry in store.trim(cache, 0)] == ["b"]
    with pytest.raises(CacheError, match="cannot write to the cache"):
        store.remove(cache, "a")


def test_what_killed_runs_left_is_swept_and_what_is_being_made_is_not(cache: Cache) -> None:
    for key in ("left", "made"):
        directory = cache.root / "tmp" / f"{store.KIND}-{key}.abc123" / "new"
        directory.mkdir(parents=True)
        (directory / RAM).write_bytes(b"half")
    other = cache.root / "tmp" / "images-left.abc123"
    other.mkdir()
    with cache.lock(store.lock_of("made")):
        store.trim(cache, 0)
        assert sorted(path.name for path in (cache.root / "tmp").iterdir()) == ["images-left.abc123", "templates-made.abc123"]
    store.trim(cache, 0)
    assert list((cache.root / "tmp").iterdir()) == [other]


def test_an_unsound_one_is_remembered_and_says_how_to_try_again(cache: Cache) -> None:
    with cache.publish(store.KIND, KEY) as directory:
        (directory / RAM).write_bytes(b"memory")
        store.write_unsound(directory, FACTS, "a clone hangs")
    assert [path.name for path in cache.entry(store.KIND, KEY).iterdir()] == [MANIFEST]
    with pytest.raises(NoTemplate, match=rf"^a clone hangs \(`spapr template remove {KEY}` has it tried again\)$"):
        store.find(cache, KEY)
    assert [one.state for one in store.listing(cache)] == ["a clone hangs"]
    assert store.remove(cache, KEY)
    assert store.find(cache, KEY) is None


def test_the_time_of_use_is_no_reason_to_fail(cache: Cache, template: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = store.find(cache, KEY)
    assert found is not None

    def utime(path: object) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(os, "utime", utime)
    found.touch()
    found.close()
