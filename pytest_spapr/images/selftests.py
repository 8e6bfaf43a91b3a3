"""The kernel's own selftests that are shell scripts, as the source of an image's kernel has them.

No binary package of Debian's has them, so the source is fetched, 140 to 150 MB, verified by apt, and thrown away: ten kilobytes stay::

    CACHE/selftests/VERSION/cpu-hotplug/cpu-on-off-test.sh
    CACHE/selftests/VERSION/memory-hotplug/mem-on-off-test.sh
    CACHE/selftests/VERSION/selftests.json                      where they come from
"""

from __future__ import annotations

import json
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Final

from pytest_spapr.cache import Cache, cache_errors
from pytest_spapr.debian.apt import SOURCE, AptState, Package
from pytest_spapr.debian.source import version_of
from pytest_spapr.errors import ImageError, VerificationError
from pytest_spapr.images import recipe
from pytest_spapr.images.store import GuestImage
from pytest_spapr.progress import NullProgress, Progress

KIND: Final = "selftests"

_MANIFEST: Final = "selftests.json"
_TESTS: Final = "tools/testing/selftests"
# The scripts that a test may ask for, by their place below the selftests.
_SCRIPTS: Final = ("cpu-hotplug/cpu-on-off-test.sh", "memory-hotplug/mem-on-off-test.sh")
_PACKAGE: Final = "linux"
# The kernel's own package, by what comes before its release: Debian 14 has split it.
_KERNEL_PACKAGES: Final = ("linux-image-", "linux-binary-")


@dataclass(frozen=True)
class Selftests:
    """Selftests of one kernel. :ivar directory: as below the kernel's ``tools/testing/selftests``. :ivar source: their version."""

    directory: Path
    source: str


def find(cache: Cache, image: GuestImage) -> Selftests | None:
    """Return the selftests of the image's kernel from the cache, or None when it has none.

    :raises ImageError: its kernel is none of Debian's, or what is in the cache is damaged.
    """
    entry = cache.entry(KIND, _version(image))
    if not (entry / _MANIFEST).exists():
        return None
    try:
        source = json.loads((entry / _MANIFEST).read_text())["source"]
        missing = [name for name in _SCRIPTS if not (entry / name).is_file()]
        if missing:
            raise ValueError(f"it lacks {missing[0]}")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ImageError(f"the cached selftests {entry} are damaged ({error}): remove the directory, and try again.") from error
    return Selftests(entry, source)


def fetch(cache: Cache, mirror: str, image: GuestImage, progress: Progress | None = None) -> Selftests:
    """Return the selftests of the image's kernel from the cache, else from the mirror: 150 MB, half a minute, nearly nothing stays.

    The source is that of the image's suite. It may be of a later point release of the same stable series, which the suite has by now.

    :param mirror: base URL.
    :raises ImageError: its kernel is none of Debian's, or its suite has moved on to another series. :raises MirrorError: the mirror does
        not have the source. :raises VerificationError: signature or hash mismatch, or not a kernel's source. :raises CacheError: disk full.
    """
    progress = progress or NullProgress()
    version = _version(image)
    with cache.lock(f"{KIND}-{version}", progress):
        if (found := find(cache, image)) is None:
            _fetch(cache, mirror, image, version, progress)
            found = find(cache, image)
    if found is None:
        raise ImageError(f"the selftests were removed from the cache {cache.root} while they were opened: try again.")
    return found


def _version(image: GuestImage) -> str:
    """Return the version of the package that the image's kernel is from."""
    for prefix in _KERNEL_PACKAGES:
        if (version := image.packages.get(prefix + image.kernel_release)) is not None:
            return version
    raise ImageError(f"the kernel {image.kernel_release} of the image {image.name} is none of Debian's: its source is not known")


def _fetch(cache: Cache, mirror: str, image: GuestImage, version: str, progress: Progress) -> None:
    apt = AptState(cache, mirror, recipe.load(image.name).kernel_suites, SOURCE, progress)
    with cache.lock(apt.name, progress):
        files = apt.fetch_source(_PACKAGE)
        archive, path = _upstream(files)
        found = version_of(files)
        if _series(found) != _series(version):
            raise ImageError(f"the image {image.name} has the kernel {version}, but {', '.join(apt.suites)} has {found} by now")
        progress.phase(f"reading the selftests of {archive.file}")
        with cache.publish(KIND, version) as scratch:
            scripts = _read(path)
            with cache_errors(scratch):
                for name, data in scripts.items():
                    (scratch / name).parent.mkdir(exist_ok=True)
                    (scratch / name).write_bytes(data)
                origin = {"source": found, "kernel": version, "file": archive.file, "sha256": archive.sha256}
                (scratch / _MANIFEST).write_text(json.dumps(origin, indent=1))
        with cache_errors(path):
            path.unlink()
    progress.done()


def _upstream(files: Mapping[Package, Path]) -> tuple[Package, Path]:
    for package, path in files.items():
        if ".orig.tar." in package.file and not package.file.endswith(".asc"):
            return package, path
    raise VerificationError(f"{', '.join(package.file for package in files)}: a source package without the upstream source")


def _read(archive: Path) -> dict[str, bytes]:
    """Return the scripts by name, from a kernel's source; 10 s."""
    wanted = {f"{_TESTS}/{name}": name for name in _SCRIPTS}
    found: dict[str, bytes] = {}
    try:
        with tarfile.open(archive, mode="r|*") as stream:
            for member in stream:
                # Without the directory that all of it is in.
                name = wanted.get(str(PurePosixPath(*PurePosixPath(member.name).parts[1:])))
                if name is not None and member.isfile() and (data := stream.extractfile(member)) is not None:
                    found[name] = data.read()
                    if len(found) == len(wanted):
                        return found
    except tarfile.TarError as error:
        raise VerificationError(f"{archive} is not a whole archive: {error}") from error
    raise VerificationError(f"{archive} has no {', '.join(sorted(set(wanted.values()) - found.keys()))}")


def _series(version: str) -> list[str]:
    return version.split(".")[:2]
