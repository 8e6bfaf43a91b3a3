"""The QEMU that is the nested host's hardware: ``qemu-system-x86_64`` from Debian's packages, in a private prefix, run without root."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pytest_spapr.builds import store
from pytest_spapr.cache import Cache
from pytest_spapr.debian import prefix
from pytest_spapr.progress import Progress

KIND: Final = "qemu-x86"
#: 11.1: the first that has igb, a NIC of two functions in two IOMMU groups, is 8.0.
SUITES: Final = ("trixie", "trixie-backports")
PACKAGE: Final = "qemu-system-x86"

_BINARY: Final = "usr/bin/qemu-system-x86_64"
_FIRMWARE: Final = ("usr/share/qemu", "usr/share/seabios")


@dataclass(frozen=True)
class Emulator:
    """A ``qemu-system-x86_64``. :ivar command: how to run it. :ivar env: additions to the environment."""

    name: str
    version_text: str
    command: tuple[str, ...]
    env: Mapping[str, str]


def find(cache: Cache) -> Emulator | None:
    """Return the emulator in the cache, or None when it has none.

    :raises BuildError: it is damaged, or no packages are known for this machine's architecture.
    """
    return _programs().find(cache, store.architecture())


def fetch(cache: Cache, mirror: str, progress: Progress | None = None) -> Emulator:
    """Return the emulator in the cache, else from the mirror.

    :param mirror: base URL.
    :raises BuildError: no packages are known for this machine's architecture. :raises MirrorError: the mirror does not have it.
    :raises VerificationError: signature or hash mismatch. :raises CacheError: disk full.
    """
    return _programs().fetch(cache, mirror, store.architecture(), progress)


def _programs() -> prefix.Programs[Emulator]:
    return prefix.Programs(
        kind=KIND, what=PACKAGE, suites=SUITES, names=(PACKAGE,), space=200_000_000, manifest="emulator.json", opened=_open
    )


def _open(root: Path, architecture: str, version: str) -> Emulator:
    loader = store.loader_below(root, architecture)
    if loader is None or not (root / _BINARY).exists():
        raise ValueError("no loader or no QEMU in it")
    firmware = [word for place in _FIRMWARE for word in ("-L", str(root / place))]
    return Emulator(
        name=PACKAGE,
        version_text=f"{PACKAGE} {version}",
        command=(str(loader), "--library-path", store.library_path(root, architecture), str(root / _BINARY), *firmware),
        env={"QEMU_MODULE_DIR": str(root / f"usr/lib/{store.triplet_of(architecture)}/qemu")},
    )
