"""Disks of the user's own: a distribution as it is installed, with a boot loader and a kernel of its own. Such a file is never written.

Each machine gets an overlay, an empty qcow2 that takes its writes. Which file lies under it, and its format, stand on QEMU's command line:
nothing is guessed of what a guest may have written at the beginning of a raw disk.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pytest_spapr.errors import ImageError
from pytest_spapr.images.login import Login
from pytest_spapr.images.store import GuestImage
from pytest_spapr.private import OwnNames

#: Names of such files end so.
SUFFIXES: Final = (".qcow2", ".raw")

_MAGIC: Final = b"QFI\xfb"
_EXPECTED: Final = (
    "Expected is a recipe's name (`spapr image list`), a built image's directory, or a ppc64le disk, NAME.qcow2 or NAME.raw."
)
_SECTOR: Final = 512
# Version 3 of docs/interop/qcow2.rst: the header up to header_length, clusters of 64 KiB, reference counts of 16 bits.
_HEADER: Final = struct.Struct(">4sIQIIQIIQQIIQQQQII")
_CLUSTER_BITS, _REFCOUNT_ORDER, _VERSION = 16, 4, 3
_CLUSTER: Final = 1 << _CLUSTER_BITS
_MAPPED: Final = _CLUSTER // 8 * _CLUSTER
_OVERLAYS: Final = OwnNames("disk-", ".qcow2")


@dataclass(frozen=True, slots=True)
class About:
    """What a boot showed of a disk's system.

    :ivar page_size: bytes. :ivar lacks: which of rtas_errd and drmgr does not run, or is not there: PCI hotplug needs both.
    """

    kernel_release: str
    page_size: int | None
    lacks: tuple[str, ...]


class OwnDisk(GuestImage):
    """A disk that boots by itself. It has neither a kernel nor an initramfs on the host, nor a console shell, nor a template.

    :ivar format: ``raw`` or ``qcow2``. :ivar size: bytes, as the guest sees it. :ivar seed: for cloud-init, where that lets us in.
    """

    format: str
    size: int
    seed: Path | None
    _login: Login

    def __init__(
        self,
        path: Path,
        form: str,
        size: int,
        login: Login,
        *,
        host_key: str | None = None,
        seed: Path | None = None,
        about: About | None = None,
    ) -> None:
        values = {
            "name": path.name,
            "directory": path,
            "kernel_release": about.kernel_release if about else "",
            "page_size": about.page_size if about else None,
            "lacks": about.lacks if about else (),
            "host_key": host_key,
            "packages": {},
            "modules": (),
            "console_shell": False,
            "manifest": {},
            "disk": None,
            "format": form,
            "size": size,
            "seed": seed,
            "_login": login,
        }
        for name, value in values.items():
            # The class is frozen.
            object.__setattr__(self, name, value)

    __eq__ = object.__eq__
    __hash__ = object.__hash__

    def __repr__(self) -> str:
        return f"<OwnDisk {self.directory}>"

    def known(self, about: About) -> OwnDisk:
        """Return the same disk, with what a boot showed of it."""
        return OwnDisk(self.directory, self.format, self.size, self.login, host_key=self.host_key, seed=self.seed, about=about)

    @property
    def login(self) -> Login:
        return self._login

    @property
    def kernel(self) -> Path:
        raise self._inside("kernel")

    @property
    def initramfs(self) -> Path:
        raise self._inside("initramfs")

    @property
    def client_key(self) -> Path:
        raise self._inside("client key")

    def _inside(self, what: str) -> ImageError:
        return ImageError(
            f"the image {self.directory} is a disk of your own: this needs the {what} of an image as `spapr image build` makes"
        )


@dataclass(frozen=True, slots=True)
class Overlay:
    """What a machine writes in place of a disk. :ivar path: its file. :ivar arguments: for QEMU, the disk and its adapter."""

    path: Path
    arguments: tuple[str, ...]

    @classmethod
    def of(cls, disk: OwnDisk) -> Overlay:
        """Make one, empty, in this user's own directory; those that no process has any more are removed.

        :raises ImageError: it cannot be written. :raises ConfigError: see ``private.private_directory``.
        """
        # A machine that outlives its test has its own open: it needs no name.
        for left in _OVERLAYS.left():
            left.unlink(missing_ok=True)
        path = _OVERLAYS.new()
        try:
            write_empty(path, disk.size)
        except OSError as error:
            raise ImageError(
                f"{path}, which is to take a guest's writes, cannot be made: {error.strerror}. Set TMPDIR."
            ) from error
        return cls(path, tuple(_arguments(disk, path)))

    def close(self) -> None:
        """Remove the file."""
        with suppress(OSError):
            self.path.unlink()


@contextmanager
def overlay_for(image: GuestImage | None, at_end: list[Callable[[], None]]) -> Iterator[Overlay | None]:
    """Yield an overlay where the image is a disk of the user's own, else None. It stays when the block ends well.

    :param at_end: gets what then removes it.
    """
    if not isinstance(image, OwnDisk):
        yield None
        return
    with ExitStack() as on_failure:
        overlay = Overlay.of(image)
        on_failure.callback(overlay.close)
        yield overlay
        on_failure.pop_all()
    at_end.append(overlay.close)


def is_disk(name: str) -> bool:
    """Return whether the name of an image means a disk of the user's own: by its end, or since it is a file."""
    return name.endswith(SUFFIXES) or ("/" in name and Path(name).is_file())


def open_disk(path: Path, login: Login, *, host_key: str | None = None, seed: Path | None = None) -> OwnDisk:
    """Return the disk, of which only the header is read.

    :param login: who logs in. :param host_key: that the seed gives it.
    :raises ImageError: there is none, it cannot be read, or it is something else than its name says.
    """
    path = path.absolute()
    try:
        with path.open("rb") as stream:
            header = stream.read(_HEADER.size)
        size = path.stat().st_size
    except OSError as error:
        raise ImageError(f"{path}: {error.strerror}. {_EXPECTED}") from error
    qcow2 = header.startswith(_MAGIC)
    if path.suffix == ".qcow2" and not qcow2:
        raise ImageError(f"{path} is no qcow2: it does not begin with QFI\\xfb. {_EXPECTED}")
    if path.suffix == ".raw" and qcow2:
        raise ImageError(f"{path} is a qcow2, whatever its name says: name it so. {_EXPECTED}")
    if path.suffix not in SUFFIXES and not qcow2:
        raise ImageError(
            f"{path} is neither a directory nor a qcow2, and its name does not end in {' or '.join(SUFFIXES)}. {_EXPECTED}"
        )
    if qcow2:
        size = _qcow2_size(header, path)
    if size == 0 or size % _SECTOR:
        raise ImageError(f"{path} is no disk: {size} bytes are no whole sectors of {_SECTOR}. {_EXPECTED}")
    return OwnDisk(path, "qcow2" if qcow2 else "raw", size, login, host_key=host_key, seed=seed)


def write_empty(path: Path, size: int) -> None:
    """Write a qcow2 without any data and without a backing file; 256 KiB, sparse.

    :param size: bytes, as the guest sees it. :raises OSError: it cannot be written.
    """
    entries = -(-size // _MAPPED)
    table = -(-entries * 8 // _CLUSTER)
    # The header, the table of reference counts, its one block, and the table of tables: a cluster each, the last as many as it takes.
    counts, mapping, clusters = 1, 3, 3 + table
    header = _HEADER.pack(
        *(_MAGIC, _VERSION, 0, 0, _CLUSTER_BITS, size, 0, entries, mapping * _CLUSTER, counts * _CLUSTER, 1, 0, 0, 0, 0, 0),
        *(_REFCOUNT_ORDER, _HEADER.size),
    )
    with path.open("xb") as stream:
        os.fchmod(stream.fileno(), 0o600)
        stream.write(header)
        stream.seek(counts * _CLUSTER)
        stream.write(struct.pack(">Q", 2 * _CLUSTER))
        stream.seek(2 * _CLUSTER)
        stream.write(struct.pack(">H", 1) * clusters)
        stream.truncate(clusters * _CLUSTER)


def _qcow2_size(header: bytes, path: Path) -> int:
    if len(header) < _HEADER.size:
        raise ImageError(f"{path} is cut off: it has less than a qcow2's header. {_EXPECTED}")
    fields = _HEADER.unpack(header)
    if fields[6]:
        raise ImageError(f"{path} is encrypted: such a disk cannot be used.")
    return int(fields[5])


def _arguments(disk: OwnDisk, overlay: Path) -> list[str]:
    """Return the arguments. The disk is not on PCI, whose slots are the tests'; it is what the firmware boots."""

    def file(path: Path) -> str:
        return f"filename={str(path).replace(',', ',,')}"

    # What is lost where the host fails is of no use to anybody: no write need wait for the host's disk.
    words = [
        *("-blockdev", f"driver=file,node-name=own-file,{file(disk.directory)},read-only=on"),
        *("-blockdev", f"driver={disk.format},node-name=own,file=own-file,read-only=on"),
        *("-blockdev", f"driver=file,node-name=root-file,{file(overlay)},cache.no-flush=on"),
        *("-blockdev", "driver=qcow2,node-name=root,file=root-file,backing=own,cache.no-flush=on"),
        *("-device", "spapr-vscsi,id=vscsi", "-device", "scsi-hd,drive=root,bus=vscsi.0,bootindex=1"),
    ]
    if disk.seed is not None:
        words += ["-blockdev", f"driver=file,node-name=seed-file,{file(disk.seed)},read-only=on"]
        words += ["-blockdev", "driver=raw,node-name=seed,file=seed-file,read-only=on"]
        words += ["-device", "scsi-cd,drive=seed,bus=vscsi.0"]
    return words
