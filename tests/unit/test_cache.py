from __future__ import annotations

import errno
import shutil
import stat
import threading
from pathlib import Path

import pytest

from pytest_spapr.cache import Cache, cache_errors
from pytest_spapr.errors import CacheError
from pytest_spapr.progress import NullProgress


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cache")


def contents(cache: Cache) -> set[str]:
    return {str(path.relative_to(cache.root)) for path in cache.root.rglob("*") if not path.is_dir()}


def test_an_entry_appears_whole(cache: Cache) -> None:
    with cache.publish("images", "a") as scratch:
        (scratch / "file").write_text("x")
        assert not cache.entry("images", "a").exists()
    assert (cache.entry("images", "a") / "file").read_text() == "x"
    assert contents(cache) == {"images/a/file"}


def test_a_failed_entry_leaves_nothing(cache: Cache) -> None:
    with pytest.raises(ValueError, match="half way"), cache.publish("images", "a") as scratch:
        (scratch / "file").write_text("x")
        raise ValueError("half way")
    assert contents(cache) == set()


def test_a_failed_entry_leaves_the_old_one_alone(cache: Cache) -> None:
    with cache.publish("images", "a") as scratch:
        (scratch / "file").write_text("old")
    with pytest.raises(ValueError, match="half way"), cache.publish("images", "a"):
        raise ValueError("half way")
    assert (cache.entry("images", "a") / "file").read_text() == "old"


def test_a_new_entry_replaces_the_old_one(cache: Cache) -> None:
    for text in ("old", "new"):
        with cache.publish("images", "a") as scratch:
            (scratch / text).write_text(text)
    assert contents(cache) == {"images/a/new"}


def test_what_a_killed_run_left_is_no_entry_and_is_swept(cache: Cache) -> None:
    left = cache.root / "tmp" / "images-a.killed" / "new"
    left.mkdir(parents=True)
    (left / "half").write_text("x")
    assert cache.entries("images") == []
    with cache.publish("images", "a") as scratch:
        (scratch / "file").write_text("x")
    assert contents(cache) == {"images/a/file"}


def test_only_the_owner_may_look_into_the_cache(cache: Cache) -> None:
    with cache.publish("images", "a"):
        pass
    for path in (cache.root, cache.root / "images", cache.entry("images", "a")):
        assert stat.S_IMODE(path.stat().st_mode) == 0o700


def test_entries_are_listed_with_their_size_and_removed(cache: Cache) -> None:
    for key in ("b", "a"):
        with cache.publish("images", key) as scratch:
            (scratch / "file").write_bytes(b"x" * 10)
    assert [(entry.key, entry.size) for entry in cache.entries("images")] == [("a", 10), ("b", 10)]
    assert cache.remove("images", "a")
    assert not cache.remove("images", "a")
    assert contents(cache) == {"images/b/file"}


@pytest.mark.parametrize("name", ["../up", "", "a/b", ".hidden", "a\n"])
def test_a_name_cannot_leave_the_cache(cache: Cache, name: str) -> None:
    with pytest.raises(ValueError, match="cannot name"):
        cache.entry("images", name)
    with pytest.raises(ValueError, match="cannot name"), cache.lock(name):
        pass


class Heard(NullProgress):
    def __init__(self) -> None:
        self.phases: list[str] = []
        self.spoke = threading.Event()

    def phase(self, text: str) -> None:
        self.phases.append(text)
        self.spoke.set()


def test_a_second_run_waits_for_the_first_and_says_so(cache: Cache) -> None:
    heard, order = Heard(), []

    def second() -> None:
        with cache.lock("image-a", heard):
            order.append("second")

    thread = threading.Thread(target=second)
    with cache.lock("image-a"):
        thread.start()
        assert heard.spoke.wait(10)
        order.append("first")
    thread.join(10)
    assert order == ["first", "second"]
    assert heard.phases == ["waiting for another run that holds image-a"]


@pytest.mark.parametrize(
    ("number", "says"),
    [
        (errno.ENOSPC, r"no space left .* free\).*SPAPR_CACHE_DIR"),
        (errno.EDQUOT, "no space left"),
        (errno.EACCES, "cannot write.*SPAPR_CACHE_DIR"),
        (errno.EROFS, "cannot write.*SPAPR_CACHE_DIR"),
    ],
)
def test_errors_that_a_user_can_mend_say_how(cache: Cache, number: int, says: str) -> None:
    with pytest.raises(CacheError, match=says), cache.publish("images", "a") as scratch:
        raise OSError(number, "words of the system", str(scratch / "file"))
    assert contents(cache) == set()


@pytest.mark.parametrize("deep", [False, True], ids=["file", "file of a directory"])
def test_errors_of_a_copied_tree_say_how_too(cache: Cache, tmp_path: Path, deep: bool) -> None:
    def fail(source: str, target: str) -> None:
        raise OSError(errno.ENOSPC, "words of the system", source, None, target)

    tree = tmp_path / "tree"
    (tree / "deep").mkdir(parents=True)
    (tree / "deep" / "file" if deep else tree / "file").touch()
    with pytest.raises(CacheError, match=r"no space left .* free\)"), cache.publish("images", "a") as scratch:
        shutil.copytree(tree, scratch / "tree", copy_function=fail)
    assert contents(cache) == set()
    with pytest.raises(shutil.Error), cache_errors(tmp_path):
        raise shutil.Error("no list of errors")


def test_an_entry_is_there_or_not_or_another_users(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    with cache.publish("images", "a") as scratch:
        (scratch / "file").write_text("x")
    assert cache.has("images", "a", "file")
    assert not cache.has("images", "a", "other")
    assert not cache.has("images", "b", "file")
    # Not by its mode: root may look anywhere.
    refused = PermissionError(errno.EACCES, "Permission denied", str(cache.root))

    def stat(_: Path) -> None:
        raise refused

    monkeypatch.setattr(Path, "stat", stat)
    with pytest.raises(CacheError, match=rf"cannot read the cache: {cache.root}: Permission denied\. Set SPAPR_CACHE_DIR"):
        cache.has("images", "a", "file")


def test_other_errors_of_the_system_are_not_hidden(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), cache_errors(tmp_path):
        raise FileNotFoundError(errno.ENOENT, "gone")


def test_a_root_that_cannot_be_a_directory_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with (
        pytest.raises(CacheError, match=r"cannot use the cache.*SPAPR_CACHE_DIR"),
        Cache(tmp_path / "file/cache").publish("a", "b"),
    ):
        pass


def test_more_than_there_is_is_refused_beforehand(cache: Cache) -> None:
    cache.require_space(1, "little")
    with pytest.raises(CacheError, match=r"much needs 1000000000000\.0 MB in .*, but only .* are free"):
        cache.require_space(10**18, "much")


def test_what_is_used_is_not_removed(cache: Cache) -> None:
    with cache.publish("images", "a"):
        pass
    with cache.using("images", "a"), cache.using("images", "a"):
        assert not cache.remove_unused("images", "a")
    assert cache.remove_unused("images", "a")
    assert cache.entries("images") == []
    assert cache.remove_unused("images", "a"), "there is none"
    with pytest.raises(CacheError, match="was removed when it was to be used: try again"), cache.using("images", "a"):
        pass
