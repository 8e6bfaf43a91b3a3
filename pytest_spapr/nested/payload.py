"""The QEMU that is to run in the nested host, as a disk: an archive of the files that it needs, and no more."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from pytest_spapr.builds import store
from pytest_spapr.builds.store import StoredQemu
from pytest_spapr.cache import Cache, cache_errors
from pytest_spapr.errors import BuildError
from pytest_spapr.images import cpio
from pytest_spapr.images.elf import Elf, NotElf

KIND: Final = "nested"
#: Where the build's prefix is in the host.
ROOT: Final = "/qemu"
#: dpkg's architecture of the host.
ARCHITECTURE: Final = "amd64"

_ARCHIVE: Final = "qemu.cpio"
# Of the firmware only what a pseries machine may load.
_FIRMWARE: Final = ("vof.bin", "slof.bin")


def obtain(cache: Cache, build: StoredQemu) -> Path:
    """Return the archive of a build for x86-64, made if need be: 0.5 s and 60 MB.

    :raises BuildError: it lacks a library. :raises CacheError: disk full.
    """
    digest = hashlib.sha256(build.binary.read_bytes()).hexdigest()[:16]
    key = f"{build.name}-{digest}"
    entry = cache.entry(KIND, key)
    with cache.lock(f"{KIND}-{key}"):
        if not (entry / _ARCHIVE).exists():
            tree = {
                f"{ROOT[1:]}/{path.relative_to(build.prefix)}": cpio.file(path.read_bytes(), 0o755) for path in _needed(build)
            }
            with cache.publish(KIND, key) as scratch, cache_errors(scratch):
                (scratch / _ARCHIVE).write_bytes(cpio.archive(tree))
    return entry / _ARCHIVE


def _needed(build: StoredQemu) -> Iterator[Path]:
    """Yield the build's loader, binary, firmware, and the libraries that they ask for, directly or not."""
    loader = store.loader_below(build.prefix, ARCHITECTURE)
    if loader is None:
        raise BuildError(f"the QEMU build {build.name} is not for {ARCHITECTURE}, which the host of nested machines is.")
    yield loader
    directories = [Path(directory) for directory in store.library_path(build.prefix, ARCHITECTURE).split(":")]
    pending, seen = [build.binary], {build.binary, loader}
    while pending:
        asker = pending.pop()
        yield asker
        try:
            names = Elf(asker.read_bytes()).needed()
        except NotElf as error:
            raise BuildError(f"{asker} is damaged: {error}.") from error
        for name in names:
            # Its interpreter is not asked for: the loader is run by its own name.
            library = loader if "/" in name else next((path for path in (d / name for d in directories) if path.exists()), None)
            if library is None:
                raise BuildError(f"the QEMU build {build.name} lacks {name}, which {asker.name} needs.")
            if library not in seen:
                seen.add(library)
                pending.append(library)
    for name in _FIRMWARE:
        if (firmware := build.prefix / store.FIRMWARE / name).exists():
            yield firmware
