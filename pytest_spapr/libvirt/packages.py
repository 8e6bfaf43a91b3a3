"""libvirt with its QEMU driver: from Debian's packages in a private prefix, run without root, or the host's own.

The packaged one expects its parts below ``/``. Here its programs run through their own ``ld.so`` with the prefix's libraries, its
driver is named by ``LIBVIRT_DRIVER_DIR``, and its XML files, which have no variable of their own, are found through libxml2's
catalog (``XML_CATALOG_FILES``). Nothing stores the prefix's path: it can be moved.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Final
from xml.sax.saxutils import quoteattr

from pytest_spapr.builds import store
from pytest_spapr.cache import Cache
from pytest_spapr.debian import prefix
from pytest_spapr.progress import Progress

KIND: Final = "libvirt"
#: libvirt 9.0.0, which ``hotplug.management`` was read in.
SUITE: Final = "bookworm"
NAMES: Final = ("libvirt-daemon", "libvirt-daemon-driver-qemu", "libvirt-clients")

_DAEMON, _VIRSH, _DATA = "usr/sbin/libvirtd", "usr/bin/virsh", "usr/share/libvirt"
_DRIVER: Final = "libvirt/connection-driver/libvirt_driver_qemu.so"
_SYSTEM: Final = "/usr/sbin:/sbin"


@dataclass(frozen=True)
class Libvirt:
    """A libvirt that is ready to run.

    :ivar daemon: :ivar virsh: what to run; arguments follow. :ivar env: variables that both need besides the caller's.
    :ivar catalog: an XML catalog, of which a file must be named in ``XML_CATALOG_FILES``; None where none is needed.
    :ivar version: the package's; None where the host knows.
    """

    daemon: tuple[str, ...]
    virsh: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    catalog: str | None = None
    version: str | None = None


def find(cache: Cache) -> Libvirt | None:
    """Return the libvirt in the cache, or None when it has none.

    :raises BuildError: it is damaged, or no packages are known for this machine's architecture.
    """
    return _programs().find(cache, store.architecture())


def fetch(cache: Cache, mirror: str, progress: Progress | None = None) -> Libvirt:
    """Return the libvirt in the cache, else from the mirror: 34 MB, ten seconds; 95 MB unpacked.

    :param mirror: base URL.
    :raises BuildError: no packages are known for this machine's architecture. :raises MirrorError: the mirror does not have it.
    :raises VerificationError: signature or hash mismatch. :raises CacheError: disk full.
    """
    return _programs().fetch(cache, mirror, store.architecture(), progress)


def installed(path: str | None = None, libraries: Iterable[Path] | None = None) -> Libvirt | None:
    """Return the host's libvirt, or None where it lacks the daemon ``libvirtd``, its QEMU driver or ``virsh``.

    :param path: as ``PATH``. :param libraries: directories that may have the driver; tests pass their own.
    """
    path = f"{os.environ.get('PATH', '') if path is None else path}:{_SYSTEM}"
    daemon, virsh = shutil.which("libvirtd", path=path), shutil.which("virsh", path=path)
    if libraries is None:
        libraries = (place for pattern in ("lib*", "lib/*-linux-*") for place in Path("/usr").glob(pattern))
    if daemon is None or virsh is None or not any((place / _DRIVER).exists() for place in libraries):
        return None
    return Libvirt((daemon,), (virsh,))


def _programs() -> prefix.Programs[Libvirt]:
    return prefix.Programs(
        kind=KIND,
        what="libvirt",
        suites=(SUITE,),
        names=NAMES,
        space=150_000_000,
        manifest="libvirt.json",
        opened=_open,
        excluded=(*prefix.UNNEEDED, f"{_DATA}/schemas/*"),
    )


def _open(root: Path, architecture: str, version: str) -> Libvirt:
    loader = store.loader_below(root, architecture)
    driver = root / "usr/lib" / store.triplet_of(architecture) / _DRIVER
    missing = [path for path in (root / _DAEMON, root / _VIRSH, driver) if not path.exists()]
    if loader is None or missing:
        raise ValueError(f"it lacks {missing[0].name if missing else 'its loader'}")
    run = (str(loader), "--library-path", store.library_path(root, architecture))
    return Libvirt(
        daemon=(*run, str(root / _DAEMON)),
        virsh=(*run, str(root / _VIRSH)),
        env=MappingProxyType({"LIBVIRT_DRIVER_DIR": str(driver.parent)}),
        catalog=_catalog(root / _DATA),
        version=version,
    )


def _catalog(data: Path) -> str:
    """Return the XML catalog (OASIS) that has libxml2 read the prefix's files where libvirt names those below ``/usr``.

    Without ``cpu_map`` no ppc64 domain starts: "failed to parse xml document '/usr/share/libvirt/cpu_map/index.xml'".
    """
    start, ours = quoteattr(f"/{_DATA}/"), quoteattr(f"{data}/")
    return (
        '<catalog xmlns="urn:oasis:names:tc:entity:xmlns:xml:catalog">'
        f"<rewriteSystem systemIdStartString={start} rewritePrefix={ours}/>"
        f"<rewriteURI uriStartString={start} rewritePrefix={ours}/></catalog>\n"
    )
