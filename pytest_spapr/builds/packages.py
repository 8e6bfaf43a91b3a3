"""QEMU builds from Debian's packages of the host's architecture, side by side in private prefixes, run without root.

A packaged QEMU expects its own libraries and firmware below ``/``. Here it runs through its own ``ld.so`` with the prefix's
libraries, so that neither the host's libraries nor its QEMU matter. Nothing stores the prefix's path: it can be moved.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pytest_spapr.cache import Cache, cache_errors
from pytest_spapr.debian.apt import AptState
from pytest_spapr.debian.unpack import unpack
from pytest_spapr.errors import BuildError, MirrorError
from pytest_spapr.progress import NullProgress, Progress

DEFAULT_BUILD = "11.1"
_FORMAT = 1
_EXCLUDED = ("usr/share/doc/*", "usr/share/man/*", "usr/share/locale/*", "usr/share/lintian/*", "usr/share/icons/*", "var/*")


@dataclass(frozen=True, slots=True)
class Source:
    """Where a build comes from. :ivar target: the suite that wins, for backports."""

    suites: tuple[str, ...]
    target: str | None = None


#: Build name -> where Debian has it.
SOURCES: Mapping[str, Source] = {
    "7.2": Source(("bookworm",)),
    "11.1": Source(("trixie", "trixie-backports"), "trixie-backports"),
}

_DPKG_ARCHITECTURES = {"x86_64": "amd64", "ppc64le": "ppc64el", "aarch64": "arm64"}
#: dpkg's architecture -> multiarch triplet and the dynamic loader's name, as each architecture's ELF psABI gives it.
_LOADERS = {
    "amd64": ("x86_64-linux-gnu", "ld-linux-x86-64.so.2"),
    "ppc64el": ("powerpc64le-linux-gnu", "ld64.so.2"),
    "arm64": ("aarch64-linux-gnu", "ld-linux-aarch64.so.1"),
}


@dataclass(frozen=True)
class PackagedQemu:
    """A fetched build, ready to run.

    :ivar command: what to run: loader, library path, QEMU and its firmware directory; arguments follow.
    :ivar env: variables that it needs besides the caller's.
    :ivar binary: the QEMU executable itself, for hashing; run ``command``, not this.
    :ivar package_version: Debian's version of qemu-system-ppc.
    """

    name: str
    prefix: Path
    command: tuple[str, ...]
    env: Mapping[str, str]
    binary: Path
    package_version: str


def fetch(
    name: str, cache: Cache, mirror: str | None, progress: Progress | None = None, *, machine: str | None = None
) -> PackagedQemu:
    """Return the build ``name``, from the cache without any network, else from the mirror: 36 MB, half a minute.

    :param mirror: base URL, or None when only the cache is to be asked.
    :param machine: the host's architecture as ``uname -m`` says it; by default this machine's.
    :raises BuildError: unknown name, or an architecture that no packages are known for.
    :raises MirrorError: not cached, and no mirror or nothing there. :raises VerificationError: signature or hash mismatch.
    :raises CacheError: disk full.
    """
    progress = progress or NullProgress()
    architecture = _architecture(machine or platform.machine())
    if name not in SOURCES:
        raise BuildError(
            f"no QEMU build is called {name!r}; there are {', '.join(SOURCES)}. A binary is given with --spapr-qemu=PATH."
        )
    key = f"{name}-{architecture}"
    if not (cache.entry("qemu", key) / "build.json").exists():
        if mirror is None:
            raise MirrorError(f"QEMU {name} is not in the cache {cache.root}, and no mirror is given to fetch it from.")
        with cache.lock(f"qemu-{key}", progress):
            if not (cache.entry("qemu", key) / "build.json").exists():
                _fetch(name, key, architecture, cache, mirror, progress)
    return _open(name, cache.entry("qemu", key))


def cached(cache: Cache) -> list[PackagedQemu]:
    """Return the builds that are in the cache for this machine's architecture."""
    architecture = _architecture(platform.machine())
    entries = [(name, cache.entry("qemu", f"{name}-{architecture}")) for name in SOURCES]
    return [_open(name, entry) for name, entry in entries if (entry / "build.json").exists()]


def _architecture(machine: str) -> str:
    try:
        return _DPKG_ARCHITECTURES[machine]
    except KeyError:
        known = ", ".join(_DPKG_ARCHITECTURES)
        raise BuildError(
            f"no QEMU packages are known for this machine's architecture {machine} (known: {known}): give --spapr-qemu=PATH."
        ) from None


def _fetch(name: str, key: str, architecture: str, cache: Cache, mirror: str, progress: Progress) -> None:
    source = SOURCES[name]
    apt = AptState(cache, mirror, source.suites, architecture, progress, target=source.target)
    with cache.lock(apt.name, progress):
        debs = apt.fetch(["qemu-system-ppc"])
        cache.require_space(200_000_000, f"unpacking QEMU {name}")
        progress.phase(f"unpacking QEMU {name}")
        with cache.publish("qemu", key) as scratch:
            unpack(list(debs.values()), scratch / "root", _EXCLUDED, progress)
            with cache_errors(scratch):
                versions = {package.name: package.version for package in debs}
                manifest = {"format": _FORMAT, "architecture": architecture, "packages": dict(sorted(versions.items()))}
                (scratch / "build.json").write_text(json.dumps(manifest, indent=1))
    progress.done()


def _open(name: str, entry: Path) -> PackagedQemu:
    try:
        manifest = json.loads((entry / "build.json").read_text())
        version, architecture = manifest["packages"]["qemu-system-ppc"], manifest["architecture"]
    except (OSError, ValueError, KeyError) as error:
        raise BuildError(
            f"the cached QEMU build {entry} is damaged ({error}): remove the directory and fetch it again."
        ) from error
    prefix = entry / "root"
    triplet, loader_name = _LOADERS[architecture]
    # Before Debian's usr-merge (trixie) libc's files are in /lib, since then in /usr/lib.
    loader = next(
        (path for path in (prefix / base / triplet / loader_name for base in ("usr/lib", "lib")) if path.exists()), None
    )
    binary = prefix / "usr/bin/qemu-system-ppc64"
    if loader is None or not binary.exists():
        raise BuildError(
            f"the cached QEMU build {entry} is damaged (no loader or no QEMU): remove the directory and fetch it again."
        )
    directories = (f"lib/{triplet}", f"usr/lib/{triplet}", f"usr/lib/{triplet}/pulseaudio")
    libraries = ":".join(str(prefix / directory) for directory in directories)
    # -L is a must: /proc/self/exe is ld.so, so QEMU's own relocation would find the host's firmware or none.
    command = (str(loader), "--library-path", libraries, str(binary), "-L", str(prefix / "usr/share/qemu"))
    return PackagedQemu(name, prefix, command, {"QEMU_MODULE_DIR": str(prefix / f"usr/lib/{triplet}/qemu")}, binary, version)
