"""Finished images: what is in an image directory, and how one is opened and checked."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pytest_spapr.debian.apt import file_sha256
from pytest_spapr.errors import ConfigError, ImageError, VerificationError
from pytest_spapr.images.login import Login, require_host_key

FORMAT = 3
KIND = "images"
MANIFEST, VMLINUX, INITRAMFS, CLIENT_KEY, HOST_KEY = "image.json", "vmlinux", "initramfs.cpio", "client_key", "host_key.pub"
FILES = (VMLINUX, INITRAMFS, CLIENT_KEY, HOST_KEY)
#: A raw disk, of images that have one.
DISK = "disk.raw"


@dataclass(frozen=True)
class GuestImage:
    """A guest image that is ready to boot.

    :ivar page_size: bytes; None when the kernel is the user's own and does not say. :ivar client_key: private key for root, OpenSSH
        format. :ivar host_key: the guest's public key, ``ssh-ed25519 AAAA...``. :ivar packages: name -> version.
    :ivar modules: kernel modules that the guest's init loads, in this order.
    :ivar console_shell: the guest's init keeps a shell on hvc3 for the plugin. :ivar manifest: all of image.json.
    :ivar disk: the raw disk that the initramfs goes on with, which is only read; None for an image that is all initramfs.
    :ivar lacks: what of user space's part in PCI hotplug, ``rtas_errd`` and ``drmgr``, does not run in the guest.
    """

    name: str
    directory: Path
    kernel: Path
    initramfs: Path
    kernel_release: str
    page_size: int | None
    client_key: Path
    host_key: str | None
    packages: Mapping[str, str]
    modules: tuple[str, ...]
    console_shell: bool
    manifest: Mapping[str, Any]
    disk: Path | None = None
    lacks: tuple[str, ...] = ()

    @property
    def login(self) -> Login:
        """Who the plugin logs in as."""
        return Login(key=self.client_key)

    @property
    def kernel_text(self) -> str:
        """The guest's kernel for people, and what is missing beside it: ``Linux 6.1.0-50-powerpc64le without rtas_errd``."""
        kernel = f"Linux {self.kernel_release}" if self.kernel_release else "a kernel not known yet"
        return kernel + (f" without {' and '.join(self.lacks)}" if self.lacks else "")


def files_of(manifest: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the names of the files that an image consists of."""
    return (*FILES, DISK) if DISK in manifest["files"] else FILES


def open_image(directory: Path) -> GuestImage:
    """Return the image in ``directory``; checks that all is there and of the right size, not the hashes. Milliseconds.

    :raises ImageError: not an image directory, another format, a file is missing or cut off, or the host key is none.
    """
    return _open(directory, lambda _name, _facts: None)


def verify(directory: Path) -> GuestImage:
    """Open the image and check the hash of each file and part; a few tenths of a second.

    :raises ImageError: see :func:`open_image`. :raises VerificationError: a file is not what it was when the image was built.
    """

    def check(name: str, facts: Mapping[str, Any]) -> None:
        if file_sha256(directory / name) != facts["sha256"]:
            raise VerificationError(
                f"{directory / name} was changed since the image was built: remove the image and build it again."
            )

    return _open(directory, check)


def _open(directory: Path, check: Callable[[str, Mapping[str, Any]], None]) -> GuestImage:
    """Return the image. :param check: is called with the name of each file, and what the manifest says of it."""
    path = directory / MANIFEST
    try:
        manifest = json.loads(path.read_text())
    except OSError as error:
        raise ImageError(
            f"{directory} is not a guest image: {path.name}: {error.strerror}. Images are made by `spapr image build`."
        ) from error
    except ValueError as error:
        raise ImageError(f"{path} is damaged: {error}. Build the image again.") from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        found = manifest.get("format") if isinstance(manifest, dict) else None
        raise ImageError(f"{path} has the format {found!r}, expected {FORMAT}: build the image again with this version.")
    try:
        for name in files_of(manifest):
            _check_size(directory / name, manifest["files"][name]["size"])
        for name in files_of(manifest):
            check(name, manifest["files"][name])
        return GuestImage(
            name=manifest["name"],
            directory=directory,
            kernel=directory / VMLINUX,
            initramfs=directory / INITRAMFS,
            kernel_release=manifest["kernel_release"],
            page_size=manifest["page_size"],
            client_key=directory / CLIENT_KEY,
            host_key=_host_key(directory / HOST_KEY),
            packages=manifest["packages"],
            modules=tuple(manifest["modules"]),
            console_shell=manifest["console_shell"],
            manifest=manifest,
            disk=directory / DISK if DISK in manifest["files"] else None,
        )
    except (KeyError, TypeError) as error:
        raise ImageError(f"{path} is damaged: {error!r}. Build the image again.") from error


def _host_key(path: Path) -> str:
    try:
        return require_host_key(path.read_text(), str(path))
    except ConfigError as error:
        raise ImageError(str(error)) from error


def _check_size(path: Path, size: int) -> None:
    try:
        found = path.stat().st_size
    except OSError as error:
        raise ImageError(f"the guest image {path.parent} is damaged: {path.name}: {error.strerror}. Build it again.") from error
    if found != size:
        raise ImageError(
            f"the guest image {path.parent} is damaged: {path.name} has {found} bytes, expected {size}. Build it again."
        )
