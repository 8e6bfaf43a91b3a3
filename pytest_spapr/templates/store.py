"""The templates in the cache: opened with care, listed, removed, and kept within a bound.

::

    templates/<key>/                locked (flock, shared) while a run may make clones of it; its modification time is its last use
    templates/<key>/template.json   facts, and what the other files must be like
    templates/<key>/ram             the guest's memory, with holes
    templates/<key>/devices         QEMU's migration stream without it
    templates/<key>/boot.jsonl      what was observed while it booted

Of machines that cannot be cloned there is only a template.json, which says why.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from pytest_spapr.cache import Cache, Entry, lock_directory
from pytest_spapr.errors import CacheError, SpaprError
from pytest_spapr.qemu.snapshot import Snapshot
from pytest_spapr.templates.key import FORMAT
from pytest_spapr.timeline import Lane, Record

KIND: Final = "templates"
MANIFEST, RAM, DEVICES, BOOT = "template.json", "ram", "devices", "boot.jsonl"
#: What of a boot a clone's timeline begins with.
GUEST_LANES: Final = (Lane.CONSOLE, Lane.KERNEL, Lane.SERVICE)
_HASHED: Final = (DEVICES, BOOT)


class NoTemplate(SpaprError):
    """There is no template and none can be made: machines are booted instead. The message says why, in one line.

    It is the same in all processes that meet the same reason: they are counted together.
    """


class Damaged(SpaprError):
    """A template on disk is not as it was written."""


@dataclass(frozen=True)
class Template:
    """A template that clones can be made of. While this object lives, no run removes it.

    :ivar snapshot: for ``Machine.restore``. :ivar boot: what its guest said when it booted, at negative times.
    :ivar hold: gives the lock back.
    """

    key: str
    directory: Path
    manifest: Mapping[str, Any]
    snapshot: Snapshot
    boot: tuple[Record, ...]
    hold: ExitStack

    def require_unchanged(self) -> None:
        """Look whether the memory is still what it was: 0.01 ms, so before each clone.

        :raises Damaged: it is not.
        """
        _check_ram(self.directory, self.manifest)

    def touch(self) -> None:
        """Say that it was used now."""
        # Whoever may not say so has no say in what is removed either.
        with suppress(OSError):
            os.utime(self.directory)

    def close(self) -> None:
        """Let other runs remove it."""
        self.hold.close()


@dataclass(frozen=True, slots=True)
class Listed:
    """A template for people. :ivar manifest: empty for a damaged one. :ivar used: when, in seconds since 1970.
    :ivar state: what is to be said about it, e.g. ``in use``; empty for a sound one that waits.
    """

    entry: Entry
    manifest: Mapping[str, Any]
    used: float
    state: str


def lock_of(key: str) -> str:
    """Return the name of the lock that whoever makes this template holds."""
    return f"template-{key}"


def find(cache: Cache, key: str) -> Template | None:
    """Return the template, None if there is none. Costs 5 ms; a process needs it once for each template.

    :raises Damaged: it is not what was written. :raises NoTemplate: it is another user's, or clones of such machines were found
        unsound, or it cannot be read at all.
    """
    directory = cache.entry(KIND, key)
    try:
        descriptor = lock_directory(directory, fcntl.LOCK_SH)
    except OSError as error:
        raise NoTemplate(f"the template {directory} cannot be used: {error.strerror}") from error
    if descriptor is None:
        return None
    hold = ExitStack()
    hold.callback(os.close, descriptor)
    try:
        _check_owner(directory, descriptor)
        manifest, devices, boot = _read(directory, key)
    except BaseException:
        hold.close()
        raise
    return Template(key, directory, manifest, Snapshot(directory / RAM, devices), boot, hold)


def write_manifest(directory: Path, facts: Mapping[str, Any], firmware: Sequence[Path]) -> None:
    """Complete a template whose other files are written: record what they are like, and have all of it on the disk.

    :param firmware: the files that its QEMU loaded besides kernel and initramfs.
    """
    ram = directory / RAM
    # QEMU's mapping may leave its time open until the pages are written back.
    os.utime(ram)
    for name in (RAM, *_HASHED):
        with (directory / name).open("rb") as stream:
            os.fsync(stream.fileno())
    found = ram.stat()
    manifest = {
        **facts,
        "format": FORMAT,
        "ram": {"size": found.st_size, "mtime_ns": found.st_mtime_ns},
        "files": {name: _sha256(directory / name) for name in _HASHED},
        "firmware": {str(path): _sha256(path) for path in firmware},
    }
    _write(directory, manifest)


def write_unsound(directory: Path, facts: Mapping[str, Any], reason: str) -> None:
    """Remember that machines like this one cannot be cloned; nothing else of the template stays."""
    for name in (RAM, *_HASHED):
        (directory / name).unlink(missing_ok=True)
    _write(directory, {**facts, "format": FORMAT, "unsound": reason})


def listing(cache: Cache) -> list[Listed]:
    """Return all templates in the cache, the one that was used last first. Costs 10 ms each."""
    return [_listed(cache, entry, used) for entry, used in _by_age(cache)]


def remove(cache: Cache, key: str) -> bool:
    """Remove a template; return False if a run uses it.

    :raises CacheError: it may not be removed.
    """
    return cache.remove_unused(KIND, key)


def trim(cache: Cache, max_size: int) -> list[Entry]:
    """Remove the templates that were not used for longest until the rest fits, and what killed runs left; return what was removed.

    :param max_size: bytes on disk. Templates that a run uses stay, also where they are too large together, and so do those that
        this user may not remove.
    """
    cache.sweep(KIND, lock_of)
    removed, total = [], 0
    for entry, _ in _by_age(cache):
        total += entry.size
        with suppress(CacheError, OSError):
            if total > max_size and remove(cache, entry.key):
                removed.append(entry)
                total -= entry.size
    return removed


def _by_age(cache: Cache) -> list[tuple[Entry, float]]:
    """Return all templates and when they were used, the last one first."""
    found = []
    for entry in cache.entries(KIND):
        # Another run may remove it meanwhile.
        with suppress(FileNotFoundError):
            found.append((entry, entry.path.stat().st_mtime))
    return sorted(found, key=lambda one: one[1], reverse=True)


def _listed(cache: Cache, entry: Entry, used: float) -> Listed:
    manifest: Mapping[str, Any] = {}
    try:
        manifest = _manifest(entry.path)
        if template := find(cache, entry.key):
            template.close()
        state = "in use" if _in_use(entry.path) else ""
    except (Damaged, NoTemplate) as error:
        state = str(manifest.get("unsound") or error).removeprefix(f"the template {entry.path} ")
    return Listed(entry, manifest, used, state)


def _in_use(directory: Path) -> bool:
    try:
        descriptor = lock_directory(directory, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return True
    if descriptor is not None:
        os.close(descriptor)
    return False


def _read(directory: Path, key: str) -> tuple[Mapping[str, Any], bytes, tuple[Record, ...]]:
    """Return a template's manifest, device state and boot, all checked."""
    manifest = _manifest(directory)
    if reason := manifest.get("unsound"):
        raise NoTemplate(f"{reason} (`spapr template remove {key}` has it tried again)")
    _check_ram(directory, manifest)
    try:
        files = {name: (directory / name).read_bytes() for name in _HASHED}
        for name, data in files.items():
            if hashlib.sha256(data).hexdigest() != manifest["files"][name]:
                raise Damaged(f"the template {directory} is damaged: {name} is not what was written")
        for path, digest in manifest["firmware"].items():
            if _sha256(Path(path)) != digest:
                raise Damaged(f"the template {directory} is out of date: {path} was changed since")
        return manifest, files[DEVICES], tuple(_records(files[BOOT].decode()))
    except OSError as error:
        raise Damaged(f"the template {directory} is damaged: {error.filename}: {error.strerror}") from error
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise Damaged(f"the template {directory} is damaged: {error!r}") from error


def _manifest(directory: Path) -> Mapping[str, Any]:
    try:
        manifest: Mapping[str, Any] = json.loads((directory / MANIFEST).read_bytes())
        if manifest["format"] != FORMAT:
            raise Damaged(f"the template {directory} is of another version of this package")
        if "unsound" in manifest or {"ram", "files", "firmware"} <= manifest.keys():
            return manifest
    except OSError as error:
        raise Damaged(f"the template {directory} is damaged: {MANIFEST}: {error.strerror}") from error
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise Damaged(f"the template {directory} is damaged: {MANIFEST}: {error!r}") from error
    raise Damaged(f"the template {directory} is damaged: {MANIFEST} does not say what the other files must be like")


def _check_owner(directory: Path, descriptor: int) -> None:
    """Another user's template would have this user's QEMU run what is in it."""
    owner = os.fstat(descriptor).st_uid
    if owner != os.geteuid():
        raise NoTemplate(
            f"the template {directory} belongs to another user (uid {owner}): set SPAPR_CACHE_DIR to a directory of your own"
        )


def _check_ram(directory: Path, manifest: Mapping[str, Any]) -> None:
    path = directory / RAM
    try:
        found = path.stat()
    except OSError as error:
        raise Damaged(f"the template {directory} is damaged: {RAM}: {error.strerror}") from error
    if {"size": found.st_size, "mtime_ns": found.st_mtime_ns} != manifest["ram"]:
        raise Damaged(f"the template {directory} is damaged: {RAM} was changed since it was written")


def _write(directory: Path, manifest: Mapping[str, Any]) -> None:
    with (directory / MANIFEST).open("w", encoding="utf-8") as stream:
        json.dump(manifest, stream, indent=1)
        stream.flush()
        os.fsync(stream.fileno())


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _records(text: str) -> Iterator[Record]:
    for seq, line in enumerate(text.splitlines()):
        seconds, lane, words = json.loads(line)
        yield Record(seq, seconds, Lane(lane), words)
