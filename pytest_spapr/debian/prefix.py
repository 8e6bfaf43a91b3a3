"""Debian packages unpacked below an entry of the cache: programs that run from there, without root and without being installed."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Final, TypeVar

from pytest_spapr.cache import Cache, cache_errors
from pytest_spapr.debian.apt import AptState
from pytest_spapr.debian.unpack import unpack
from pytest_spapr.errors import BuildError
from pytest_spapr.progress import Progress

#: Paths of packages that no program needs.
UNNEEDED: Final = (
    "usr/share/doc/*",
    "usr/share/man/*",
    "usr/share/locale/*",
    "usr/share/lintian/*",
    "usr/share/icons/*",
    "var/*",
)

T = TypeVar("T")


def install(
    apt: AptState,
    names: Sequence[str],
    cache: Cache,
    entry: tuple[str, str],
    progress: Progress,
    *,
    what: str,
    space: int,
    finish: Callable[[Path, Mapping[str, str]], object],
    excluded: tuple[str, ...] = UNNEEDED,
    without: Collection[str] = (),
) -> None:
    """Fetch packages with all that they depend on and unpack them below ``root`` in a new entry of the cache.

    :param entry: kind and key of the entry, whose lock the caller has. :param what: for the progress. :param space: bytes, unpacked.
    :param finish: writes what makes the entry complete, into its directory; it gets the packages' versions by name.
    :param excluded: patterns of paths. :param without: packages that are not unpacked.
    :raises MirrorError: the mirror does not have them. :raises VerificationError: signature or hash mismatch.
    :raises CacheError: disk full.
    """
    with cache.lock(apt.name, progress):
        debs = apt.fetch(names)
        cache.require_space(space, f"unpacking {what}")
        progress.phase(f"unpacking {what}")
        with cache.publish(*entry) as scratch:
            unpack([deb for package, deb in debs.items() if package.name not in without], scratch / "root", excluded, progress)
            with cache_errors(scratch):
                finish(scratch, dict(sorted((package.name, package.version) for package in debs)))
    progress.done()


def obtain(
    cache: Cache, entry: tuple[str, str], find: Callable[[], T | None], make: Callable[[], None], progress: Progress, *, what: str
) -> T:
    """Return what is in an entry of the cache, made now if need be, by one process of all that want it.

    :param find: opens it; None where it is not there. :param what: for the error.
    :raises BuildError: it was removed meanwhile. :raises: as both functions.
    """
    with cache.lock("-".join(entry), progress):
        if (found := find()) is None:
            make()
            found = find()
    if found is None:
        raise BuildError(f"{what} was removed from the cache {cache.root} while it was opened: try again.")
    return found
