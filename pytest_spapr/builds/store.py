"""The QEMU builds in the cache, packaged ones and those that were built from source: opened, listed, found by name, removed.

A packaged QEMU expects its own libraries and firmware below ``/``. Here each runs through its own ``ld.so`` with the prefix's
libraries, so that neither the host's libraries nor its QEMU matter. Nothing stores the prefix's path: it can be moved.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from pytest_spapr.cache import Cache
from pytest_spapr.errors import BuildError

KIND: Final = "qemu"
MANIFEST: Final = "build.json"
BINARY: Final = "usr/bin/qemu-system-ppc64"
FIRMWARE: Final = "usr/share/qemu"
_DPKG_ARCHITECTURES: Final = {"x86_64": "amd64", "ppc64le": "ppc64el", "aarch64": "arm64"}
#: dpkg's architecture -> multiarch triplet and the dynamic loader's name, as each architecture's ELF psABI gives it.
_LOADERS: Final = {
    "amd64": ("x86_64-linux-gnu", "ld-linux-x86-64.so.2"),
    "ppc64el": ("powerpc64le-linux-gnu", "ld64.so.2"),
    "arm64": ("aarch64-linux-gnu", "ld-linux-aarch64.so.1"),
}


@dataclass(frozen=True)
class StoredQemu:
    """A build in the cache, ready to run.

    :ivar command: what to run: loader, library path, QEMU and its firmware directory; arguments follow.
    :ivar env: variables that it needs besides the caller's.
    :ivar binary: the QEMU executable itself, for hashing; run ``command``, not this.
    :ivar manifest: what it was made of: packages, or source, patches, toolchain and configure line.
    """

    name: str
    prefix: Path
    command: tuple[str, ...]
    env: Mapping[str, str]
    binary: Path
    manifest: Mapping[str, Any]

    @property
    def package_version(self) -> str:
        """Debian's version of the binary package, or of the source package that it was built from."""
        source = self.manifest.get("source")
        return str(source["version"] if source else self.manifest["packages"]["qemu-system-ppc"])

    @property
    def patches(self) -> tuple[str, ...]:
        """The names of the patches that were applied on top of Debian's source."""
        return tuple(patch["name"] for patch in self.manifest.get("patches", ()))


def architecture(machine: str | None = None) -> str:
    """Return dpkg's name for an architecture.

    :param machine: as ``uname -m`` says it; by default this machine's. :raises BuildError: no packages are known for it.
    """
    machine = machine or platform.machine()
    try:
        return _DPKG_ARCHITECTURES[machine]
    except KeyError:
        known = ", ".join(_DPKG_ARCHITECTURES)
        raise BuildError(
            f"no QEMU packages are known for this machine's architecture {machine} (known: {known}): give --spapr-qemu=PATH."
        ) from None


def triplet_of(dpkg_architecture: str) -> str:
    """Return the multiarch triplet, which names directories of libraries."""
    return _LOADERS[dpkg_architecture][0]


def loader_below(prefix: Path, dpkg_architecture: str) -> Path | None:
    """Return the dynamic loader below a prefix, or None."""
    triplet, loader = _LOADERS[dpkg_architecture]
    # Before Debian's usr-merge (trixie) libc's files are in /lib, since then in /usr/lib.
    return next((path for path in (prefix / base / triplet / loader for base in ("usr/lib", "lib")) if path.exists()), None)


def loader_name(dpkg_architecture: str) -> str:
    """Return the file name of the dynamic loader."""
    return _LOADERS[dpkg_architecture][1]


def library_path(prefix: Path, dpkg_architecture: str) -> str:
    """Return the search path for the libraries below a prefix."""
    triplet = triplet_of(dpkg_architecture)
    return ":".join(str(prefix / part) for part in (f"lib/{triplet}", f"usr/lib/{triplet}", f"usr/lib/{triplet}/pulseaudio"))


def key_of(name: str, dpkg_architecture: str) -> str:
    """Return the cache's key of a build."""
    return f"{name}-{dpkg_architecture}"


def is_stored(cache: Cache, name: str, dpkg_architecture: str) -> bool:
    """Whether there is such a build; it may still be damaged."""
    return cache.has(KIND, key_of(name, dpkg_architecture), MANIFEST)


def names(cache: Cache) -> list[str]:
    """Return the names of the builds in the cache for this machine's architecture, also of damaged ones."""
    here, directory = _DPKG_ARCHITECTURES.get(platform.machine()), cache.root / KIND
    if here is None or not directory.is_dir():
        return []
    found = (path.name.removesuffix(f"-{here}") for path in directory.iterdir() if path.name.endswith(f"-{here}"))
    return sorted(name for name in found if is_stored(cache, name, here))


def find(cache: Cache, name: str, dpkg_architecture: str | None = None) -> StoredQemu | None:
    """Return the build of this name, or None when the cache has none.

    :raises BuildError: it is damaged.
    """
    dpkg_architecture = dpkg_architecture or _DPKG_ARCHITECTURES.get(platform.machine())
    if dpkg_architecture is None or not is_stored(cache, name, dpkg_architecture):
        return None
    return _open(name, cache.entry(KIND, key_of(name, dpkg_architecture)))


def remove(cache: Cache, name: str) -> bool:
    """Remove a build from the cache; return whether there was one. A QEMU that runs from it goes on running."""
    return cache.remove(KIND, key_of(name, architecture()))


def _open(name: str, entry: Path) -> StoredQemu:
    try:
        manifest = json.loads((entry / MANIFEST).read_text())
        dpkg_architecture = manifest["architecture"]
        prefix = entry / "root"
        loader, binary = loader_below(prefix, dpkg_architecture), prefix / BINARY
        # -L is a must: /proc/self/exe is ld.so, so QEMU's own relocation would find the host's firmware or none.
        command = (
            str(loader),
            "--library-path",
            library_path(prefix, dpkg_architecture),
            str(binary),
            "-L",
            str(prefix / FIRMWARE),
        )
        modules = {"QEMU_MODULE_DIR": str(prefix / f"usr/lib/{triplet_of(dpkg_architecture)}/qemu")}
        build = StoredQemu(name, prefix, command, modules, binary, manifest)
        if not build.package_version or loader is None or not binary.exists():
            raise ValueError("no loader or no QEMU in it")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BuildError(
            f"the cached QEMU build {entry} is damaged ({error}): `spapr qemu remove {name}`, or remove the directory, "
            "and make it again."
        ) from error
    return build
