"""Debian packages unpacked below an entry of the cache: programs that run from there, without root and without being installed."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Generic, TypeVar

from pytest_spapr.cache import Cache, cache_errors
from pytest_spapr.debian.apt import AptState
from pytest_spapr.debian.unpack import unpack
from pytest_spapr.errors import BuildError
from pytest_spapr.progress import NullProgress, Progress

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


@dataclass(frozen=True)
class Programs(Generic[T]):
    """What the cache holds of one set of packages, and how it is opened.

    :ivar kind: of the entries. :ivar what: for errors and the progress. :ivar suites: where the packages are; the last one wins.
    :ivar names: the packages that are asked for; the version is the first one's. :ivar space: bytes, unpacked.
    :ivar manifest: the file that makes an entry complete. :ivar excluded: patterns of paths.
    :ivar opened: makes what is returned of the unpacked root, the architecture and the version.
        :raises ValueError: what is missing there. :raises OSError: what cannot be read.
    """

    kind: str
    what: str
    suites: tuple[str, ...]
    names: tuple[str, ...]
    space: int
    manifest: str
    opened: Callable[[Path, str, str], T]
    excluded: tuple[str, ...] = UNNEEDED

    def find(self, cache: Cache, architecture: str) -> T | None:
        """Return what is in the cache, or None when it has none.

        :raises BuildError: it is damaged.
        """
        entry = cache.entry(*self._entry(architecture))
        manifest = entry / self.manifest
        if not manifest.exists():
            return None
        try:
            version = json.loads(manifest.read_text())["packages"][self.names[0]]
            return self.opened(entry / "root", architecture, version)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise BuildError(
                f"the cached {self.what} {entry} is damaged ({error}): remove the directory, and it is fetched again."
            ) from error

    def fetch(self, cache: Cache, mirror: str, architecture: str, progress: Progress | None = None) -> T:
        """Return what is in the cache, else from the mirror.

        :param mirror: base URL.
        :raises BuildError: it is damaged, or was removed meanwhile. :raises MirrorError: the mirror does not have it.
        :raises VerificationError: signature or hash mismatch. :raises CacheError: disk full.
        """
        progress = progress or NullProgress()
        entry = self._entry(architecture)

        def describe(directory: Path, versions: Mapping[str, str]) -> None:
            (directory / self.manifest).write_text(json.dumps({"packages": versions}, indent=1))

        def make() -> None:
            apt = AptState(
                cache, mirror, self.suites, architecture, progress, target=self.suites[-1] if len(self.suites) > 1 else None
            )
            install(
                apt,
                self.names,
                cache,
                entry,
                progress,
                what=self.what,
                space=self.space,
                finish=describe,
                excluded=self.excluded,
            )

        return obtain(cache, entry, lambda: self.find(cache, architecture), make, progress, what=self.what)

    def _entry(self, architecture: str) -> tuple[str, str]:
        return self.kind, f"{self.suites[-1]}-{architecture}"
