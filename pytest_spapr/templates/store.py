"""The templates in the cache: opened with care, listed, removed, and kept within a bound.

::

    templates/<key>/template.json   facts, and what the other files must be like; open and locked (shared) by who makes clones
    templates/<key>/ram             the guest's memory, with holes
    templates/<key>/devices         QEMU's migration stream without it
    templates/<key>/boot.jsonl      what was observed while it booted

The directory's modification time says when a template was used last.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final

from pytest_spapr.cache import Cache, Entry, cache_errors
from pytest_spapr.errors import SpaprError
from pytest_spapr.qemu.snapshot import Snapshot
from pytest_spapr.templates.key import FORMAT
from pytest_spapr.timeline import Lane, Record

KIND: Final = "templates"
MANIFEST, RAM, DEVICES, BOOT = "template.json", "ram", "devices", "boot.jsonl"
#: What of a boot a clone's timeline begins with.
GUEST_LANES: Final = (Lane.CONSOLE, Lane.KERNEL, Lane.SERVICE)


class NoTemplate(SpaprError):
    """There is no template and none can be made: machines are booted instead. The message says why, in one line."""


class Damaged(SpaprError):
    """A template on disk is not as it was written."""


@dataclass(frozen=True)
class Template:
    """A template that clones can be made of. While this object lives, no run removes it.

    :ivar snapshot: for ``Machine.restore``. :ivar boot: what its guest said when it booted, at negative times.
    """

    key: str
    directory: Path
    manifest: Mapping[str, Any]
    snapshot: Snapshot
    boot: tuple[Record, ...]
    hold: IO[str]

    def require_unchanged(self) -> None:
        """Look whether the memory is still what it was: 0.01 ms, so before each clone.

        :raises Damaged: it is not.
        """
        _check_ram(self.directory, self.manifest)

    def touch(self) -> None:
        """Say that it was used now."""
        os.utime(self.directory)

    def close(self) -> None:
        """Let other runs remove it."""
        self.hold.close()


def find(cache: Cache, key: str) -> Template | None:
    """Return the template, None if there is none. Costs 10 ms; a process needs it once for each template.

    :raises Damaged: it is not what was written. :raises NoTemplate: it is another user's, or clones of such machines were found
        unsound.
    """
    directory = cache.entry(KIND, key)
    try:
        hold = (directory / MANIFEST).open(encoding="utf-8")
    except FileNotFoundError as error:
        if directory.exists():
            raise Damaged(f"the template {directory} has no {MANIFEST}") from error
        return None
    except OSError as error:
        raise NoTemplate(f"the template {directory} cannot be read: {error.strerror}") from error
    try:
        # A run that removes it holds it for a moment: then it is gone.
        fcntl.flock(hold, fcntl.LOCK_SH)
        _check_owner(directory)
        return _open(directory, key, hold)
    except BaseException:
        hold.close()
        raise


def write_manifest(directory: Path, manifest: Mapping[str, Any]) -> None:
    """Complete a template whose other files are written: record what they are like, and have all of it on the disk."""
    ram, devices = directory / RAM, directory / DEVICES
    # QEMU's mapping may leave its time open until the pages are written back.
    os.utime(ram)
    for path in (ram, devices):
        with path.open("rb") as stream:
            os.fsync(stream.fileno())
    found = ram.stat()
    whole = {
        **manifest,
        "format": FORMAT,
        "ram": {"size": found.st_size, "mtime_ns": found.st_mtime_ns},
        "devices": hashlib.sha256(devices.read_bytes()).hexdigest(),
    }
    with (directory / MANIFEST).open("w", encoding="utf-8") as stream:
        json.dump(whole, stream, indent=1)
        stream.flush()
        os.fsync(stream.fileno())


def manifest_of(entry: Entry) -> Mapping[str, Any] | None:
    """Return what a template is, None for a damaged one."""
    try:
        return _manifest(entry.path, (entry.path / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, Damaged):
        return None


def by_age(cache: Cache) -> list[Entry]:
    """Return all templates in the cache, the one that was used last first."""
    return sorted(cache.entries(KIND), key=lambda entry: entry.path.stat().st_mtime, reverse=True)


def remove(cache: Cache, key: str) -> bool:
    """Remove a template; return False if a run uses it."""
    path = cache.entry(KIND, key) / MANIFEST
    try:
        with path.open(encoding="utf-8") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            cache.remove(KIND, key)
    except BlockingIOError:
        return False
    except FileNotFoundError:
        cache.remove(KIND, key)
    except PermissionError as error:
        with cache_errors(path):
            raise error
    return True


def trim(cache: Cache, max_size: int) -> list[Entry]:
    """Remove the templates that were not used for longest until the rest fits; return what was removed.

    :param max_size: bytes on disk. Templates that a run uses stay, also where they are too large together.
    """
    removed, total = [], 0
    for entry in by_age(cache):
        total += entry.size
        if total > max_size and remove(cache, entry.key):
            removed.append(entry)
            total -= entry.size
    return removed


def _open(directory: Path, key: str, hold: IO[str]) -> Template:
    manifest = _manifest(directory, hold.read())
    if reason := manifest.get("unsound"):
        raise NoTemplate(f"{reason} (`spapr template remove {key}` has it tried again)")
    _check_ram(directory, manifest)
    try:
        devices = (directory / DEVICES).read_bytes()
        boot = tuple(_records((directory / BOOT).read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError) as error:
        raise Damaged(f"the template {directory} is damaged: {error}") from error
    if hashlib.sha256(devices).hexdigest() != manifest["devices"]:
        raise Damaged(f"the template {directory} is damaged: {DEVICES} is not what was written")
    return Template(key, directory, manifest, Snapshot(directory / RAM, devices), boot, hold)


def _manifest(directory: Path, text: str) -> Mapping[str, Any]:
    try:
        manifest: Mapping[str, Any] = json.loads(text)
        if manifest["format"] == FORMAT and ("unsound" in manifest or ("ram" in manifest and "devices" in manifest)):
            return manifest
    except (ValueError, TypeError, KeyError) as error:
        raise Damaged(f"the template {directory} is damaged: {MANIFEST}: {error}") from error
    raise Damaged(f"the template {directory} is damaged: {MANIFEST} is of another format")


def _check_owner(directory: Path) -> None:
    """Another user's template would have this user's QEMU run what is in it."""
    owner = directory.stat().st_uid
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


def _records(text: str) -> Iterator[Record]:
    for seq, line in enumerate(text.splitlines()):
        seconds, lane, words = json.loads(line)
        yield Record(seq, seconds, Lane(lane), words)
