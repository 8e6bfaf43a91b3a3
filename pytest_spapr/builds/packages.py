"""QEMU builds from Debian's packages of the host's architecture, side by side in private prefixes, run without root."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pytest_spapr.builds import store
from pytest_spapr.builds.store import StoredQemu
from pytest_spapr.cache import Cache
from pytest_spapr.debian import prefix
from pytest_spapr.debian.apt import AptState
from pytest_spapr.errors import BuildError, MirrorError
from pytest_spapr.progress import NullProgress, Progress

DEFAULT_BUILD = "11.1"
_FORMAT = 1


@dataclass(frozen=True, slots=True)
class Source:
    """Where a build comes from.

    :ivar target: the suite that wins, for backports. :ivar architectures: those the mirrors still carry, if not all.
    """

    suites: tuple[str, ...]
    target: str | None = None
    architectures: tuple[str, ...] | None = None


#: Build name -> where Debian has it.
SOURCES: Mapping[str, Source] = {
    # Of bullseye the mirrors carry no ppc64el any more: its Release does not name it.
    "5.2": Source(("bullseye",), architectures=("amd64", "arm64")),
    "7.2": Source(("bookworm",)),
    "10.0": Source(("trixie",)),
    "11.1": Source(("trixie", "trixie-backports"), "trixie-backports"),
}


def fetch(
    name: str, cache: Cache, mirror: str | None, progress: Progress | None = None, *, machine: str | None = None
) -> StoredQemu:
    """Return the build ``name``, from the cache without any network, else from the mirror: 36 MB, half a minute.

    :param mirror: base URL, or None when only the cache is to be asked.
    :param machine: the host's architecture as ``uname -m`` says it; by default this machine's.
    :raises BuildError: unknown name, or an architecture that there are no packages for.
    :raises MirrorError: not cached, and no mirror or nothing there. :raises VerificationError: signature or hash mismatch.
    :raises CacheError: disk full.
    """
    progress = progress or NullProgress()
    architecture = store.architecture(machine)
    if name not in SOURCES:
        raise BuildError(
            f"no QEMU build is called {name!r}; there are {', '.join(SOURCES)}. A binary is given with --spapr-qemu=PATH."
        )
    if not store.is_stored(cache, name, architecture):
        _check_architecture(name, architecture)
        if mirror is None:
            raise MirrorError(f"QEMU {name} is not in the cache {cache.root}, and no mirror is given to fetch it from.")
        with cache.lock(f"qemu-{store.key_of(name, architecture)}", progress):
            if not store.is_stored(cache, name, architecture):
                _fetch(name, architecture, cache, mirror, progress)
    found = store.find(cache, name, architecture)
    if found is None:
        raise BuildError(f"the QEMU build {name} was removed from the cache {cache.root} while it was opened: try again.")
    return found


def _check_architecture(name: str, architecture: str) -> None:
    supported = SOURCES[name].architectures
    if supported is not None and architecture not in supported:
        raise BuildError(
            f"Debian carries no packages of QEMU {name} for {architecture} ({SOURCES[name].suites[0]} is kept for "
            f"{', '.join(supported)} only). Build it from source: `spapr qemu build --source={name} --name NAME`."
        )


def _fetch(name: str, architecture: str, cache: Cache, mirror: str, progress: Progress) -> None:
    source = SOURCES[name]
    apt = AptState(cache, mirror, source.suites, architecture, progress, target=source.target)

    def describe(directory: Path, versions: Mapping[str, str]) -> None:
        manifest = {"format": _FORMAT, "architecture": architecture, "packages": versions}
        (directory / store.MANIFEST).write_text(json.dumps(manifest, indent=1))

    entry = (store.KIND, store.key_of(name, architecture))
    prefix.install(apt, ["qemu-system-ppc"], cache, entry, progress, what=f"QEMU {name}", space=200_000_000, finish=describe)
