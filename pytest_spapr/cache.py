"""The cache directory: everything fetched or built, in entries that are whole or absent.

::

    ROOT/<kind>/<key>/     an entry; appears by one rename, so a killed run leaves nothing that is taken for whole;
                           locked (flock, shared) by those who must not lose it
    ROOT/tmp/              entries being made; what a killed run left here is swept by the next one that makes the same entry
    ROOT/locks/

The directories are private to their owner: an image holds a private key.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import filelock

from pytest_spapr.errors import CacheError
from pytest_spapr.progress import NullProgress, Progress

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+~-]*")
# More than there are runs; not for ever on a file system that has no lasting inode numbers.
_LOOKS = 100
_ERRNO = re.compile(r"\[Errno (\d+)\]")
_RELOCATE = "Set SPAPR_CACHE_DIR to a directory"


@dataclass(frozen=True, slots=True)
class Entry:
    """One finished entry. :ivar size: bytes on disk."""

    kind: str
    key: str
    path: Path
    size: int


class Cache:
    """The cache below ``root``, which is made when it is first written to.

    Safe for concurrent runs that hold :meth:`lock` while they make an entry.
    """

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()

    def entry(self, kind: str, key: str) -> Path:
        """Return where the entry is or would be.

        :raises ValueError: when a name could leave the cache.
        """
        for name in (kind, key):
            if not _NAME.fullmatch(name):
                raise ValueError(f"{name!r} cannot name a cache entry")
        return self.root / kind / key

    def has(self, kind: str, key: str, name: str) -> bool:
        """Return whether there is an entry with a file of this name.

        :raises CacheError: it is another user's, who lets nobody look.
        """
        try:
            (self.entry(kind, key) / name).stat()
        except (FileNotFoundError, NotADirectoryError):
            return False
        except OSError as error:
            raise CacheError(f"cannot read the cache: {error.filename}: {error.strerror}. {_RELOCATE} of your own.") from error
        return True

    def directory(self, kind: str, key: str) -> Path:
        """Return a directory of the cache that is changed in place, making it; for state that needs no wholeness of its own."""
        path = self.entry(kind, key)
        with cache_errors(path):
            self._make(path)
        return path

    @contextmanager
    def publish(self, kind: str, key: str) -> Iterator[Path]:
        """Yield an empty directory that becomes the entry when the block ends well, and is removed when it does not.

        An entry that is there already is replaced. The caller holds :meth:`lock` for this entry.

        :raises CacheError: when the disk is full or not writable; nothing is left behind then.
        """
        final = self.entry(kind, key)
        scratch_root = self.root / "tmp"
        prefix = f"{kind}-{key}."
        with cache_errors(final):
            self._make(scratch_root)
            for stale in scratch_root.glob(f"{prefix}*"):
                shutil.rmtree(stale, ignore_errors=True)
            scratch = Path(tempfile.mkdtemp(prefix=prefix, dir=scratch_root))
            try:
                content = scratch / "new"
                content.mkdir(mode=0o700)
                yield content
                self._make(final.parent)
                if final.exists():
                    final.rename(scratch / "old")
                content.rename(final)
            finally:
                shutil.rmtree(scratch, ignore_errors=True)

    @contextmanager
    def lock(self, name: str, progress: Progress | None = None) -> Iterator[None]:
        """Hold the lock ``name`` against other runs; says so through ``progress`` when it has to wait for one."""
        if not _NAME.fullmatch(name):
            raise ValueError(f"{name!r} cannot name a lock")
        with cache_errors(self.root):
            directory = self.root / "locks"
            self._make(directory)
            lock = filelock.FileLock(directory / f"{name}.lock")
            try:
                lock.acquire(timeout=0)
            except filelock.Timeout:
                (progress or NullProgress()).phase(f"waiting for another run that holds {name}")
                lock.acquire()
        try:
            yield
        finally:
            lock.release()

    def sweep(self, kind: str, lock_of: Callable[[str], str]) -> None:
        """Remove what killed runs left of entries of ``kind``; leave alone what is being made now.

        :param lock_of: returns the :meth:`lock` that whoever makes the entry of this key holds.
        """
        for left in (self.root / "tmp").glob(f"{kind}-*"):
            key = left.name.removeprefix(f"{kind}-").rpartition(".")[0]
            lock = filelock.FileLock(self.root / "locks" / f"{lock_of(key)}.lock")
            with suppress(filelock.Timeout, OSError), lock.acquire(timeout=0):
                shutil.rmtree(left, ignore_errors=True)

    def entries(self, kind: str) -> list[Entry]:
        """Return all entries of ``kind``, by key. Reads every file's size: tens of milliseconds per thousand files."""
        directory = self.root / kind
        if not directory.is_dir():
            return []
        return [Entry(kind, path.name, path, size_of(path)) for path in sorted(directory.iterdir()) if path.is_dir()]

    def remove(self, kind: str, key: str) -> bool:
        """Remove the entry; return whether there was one. It vanishes by one rename, so it is never half there."""
        final = self.entry(kind, key)
        with cache_errors(final):
            if not final.exists():
                return False
            self._make(self.root / "tmp")
            # A name of its own, not a directory made beforehand: whoever sweeps could take that away.
            scratch = self.root / "tmp" / f"{kind}-{key}.{secrets.token_hex(8)}"
            try:
                final.rename(scratch)
            except FileNotFoundError:
                return False
            shutil.rmtree(scratch, ignore_errors=True)
        return True

    @contextmanager
    def using(self, kind: str, key: str) -> Iterator[None]:
        """Have :meth:`remove_unused` leave an entry alone while the ``with`` block runs; any number of runs may.

        :raises CacheError: another run has removed it, or it cannot be locked.
        """
        directory = self.entry(kind, key)
        with cache_errors(directory):
            descriptor = lock_directory(directory, fcntl.LOCK_SH)
        if descriptor is None:
            raise CacheError(f"{directory} was removed when it was to be used: try again.")
        try:
            yield
        finally:
            os.close(descriptor)

    def remove_unused(self, kind: str, key: str, wait: Progress | None = None) -> bool:
        """Remove an entry that nobody is :meth:`using`; return False if somebody is.

        :param wait: wait for those who do, and say so.
        """
        directory = self.entry(kind, key)
        with cache_errors(directory):
            try:
                descriptor = lock_directory(directory, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if wait is None:
                    return False
                wait.phase(f"waiting for another run that uses {kind}/{key}")
                descriptor = lock_directory(directory, fcntl.LOCK_EX)
            if descriptor is not None:
                try:
                    self.remove(kind, key)
                finally:
                    os.close(descriptor)
        return True

    def require_space(self, size: int, what: str) -> None:
        """Check that ``size`` bytes fit.

        :raises CacheError: saying how much ``what`` needs and how much is free.
        """
        with cache_errors(self.root):
            self._make(self.root)
            free = shutil.disk_usage(self.root).free
        if free < size:
            raise CacheError(
                f"{what} needs {megabytes(size)} in {self.root}, but only {megabytes(free)} are free. Free some, or "
                f"{_RELOCATE[0].lower()}{_RELOCATE[1:]} on a larger file system."
            )

    def _make(self, directory: Path) -> None:
        # mkdir(parents=True) would give the directories in between the umask's mode.
        self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
        for part in reversed([directory, *directory.relative_to(self.root).parents]):
            (self.root / part).mkdir(mode=0o700, exist_ok=True)


def lock_directory(directory: Path, how: int) -> int | None:
    """Lock the directory and return its descriptor, None if there is no such directory.

    What was removed while this waited for the lock is another directory: then it looks once more.

    :param how: as for ``fcntl.flock``. :raises OSError: it cannot be opened or locked, or is another one each time.
    """
    for _ in range(_LOOKS):
        try:
            descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        except FileNotFoundError:
            return None
        with ExitStack() as hold:
            hold.callback(os.close, descriptor)
            fcntl.flock(descriptor, how)
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(descriptor), directory.lstat()):
                    hold.pop_all()
                    return descriptor
    raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), str(directory))


@contextmanager
def cache_errors(path: Path) -> Iterator[None]:
    """Turn the operating system's errors about ``path`` that its user can mend into a CacheError that says how."""
    try:
        yield
    except OSError as met:
        error = _cause(met)
        where = error.filename or path
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise CacheError(full_disk(path)) from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise CacheError(
                f"cannot write to the cache: {where}: {error.strerror}. {_RELOCATE} that you may write to."
            ) from error
        if error.errno in (errno.ENOTDIR, errno.EEXIST):
            raise CacheError(f"cannot use the cache: {where}: {error.strerror}. {_RELOCATE}.") from error
        raise


def _cause(error: OSError) -> OSError:
    """Return the first of the errors that the copying of a tree met, which knows them only as text; any other error as it is."""
    match error.args:
        case ([(_, str(target), str(words)), *_],) if found := _ERRNO.match(words):
            number = int(found[1])
            return OSError(number, os.strerror(number), target)
    return error


def full_disk(path: Path) -> str:
    """Return the message for a full disk at ``path``."""
    existing = next(parent for parent in (path, *path.parents) if parent.exists())
    free = megabytes(shutil.disk_usage(existing).free)
    return f"no space left while writing to {path} ({free} free). Free some, or set SPAPR_CACHE_DIR to a larger file system."


def megabytes(size: int) -> str:
    """Return ``size`` bytes in words."""
    return f"{size / 1e6:.1f} MB"


def size_of(directory: Path) -> int:
    """Return the bytes on disk of all files in ``directory``; what another run removes meanwhile counts as it is met."""
    total = 0
    for parent, _, names in os.walk(directory):
        for name in names:
            with suppress(FileNotFoundError):
                found = os.lstat(Path(parent, name))
                # A template's memory is a file with holes, which take no blocks (of 512 bytes, stat(2)).
                total += min(found.st_size, found.st_blocks * 512)
    return total
