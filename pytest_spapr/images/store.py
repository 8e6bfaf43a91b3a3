"""Finished images: what is in an image directory, and how one is opened and checked."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pytest_spapr.debian.apt import file_sha256
from pytest_spapr.errors import ImageError, VerificationError

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
    """

    name: str
    directory: Path
    kernel: Path
    initramfs: Path
    kernel_release: str
    page_size: int | None
    client_key: Path
    host_key: str
    packages: Mapping[str, str]
    modules: tuple[str, ...]
    console_shell: bool
    manifest: Mapping[str, Any]
    disk: Path | None = None


def files_of(manifest: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the names of the files that an image consists of."""
    return (*FILES, DISK) if DISK in manifest["files"] else FILES


def open_image(directory: Path) -> GuestImage:
    """Return the image in ``directory``; checks that all is there and of the right size, not the hashes. Milliseconds.

    :raises ImageError: not an image directory, another format, or a file is missing or cut off.
    """
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
        return GuestImage(
            name=manifest["name"],
            directory=directory,
            kernel=directory / VMLINUX,
            initramfs=directory / INITRAMFS,
            kernel_release=manifest["kernel_release"],
            page_size=manifest["page_size"],
            client_key=directory / CLIENT_KEY,
            host_key=(directory / HOST_KEY).read_text().strip(),
            packages=manifest["packages"],
            modules=tuple(manifest["modules"]),
            console_shell=manifest["console_shell"],
            manifest=manifest,
            disk=directory / DISK if DISK in manifest["files"] else None,
        )
    except (KeyError, TypeError) as error:
        raise ImageError(f"{path} is damaged: {error!r}. Build the image again.") from error


def verify(directory: Path) -> GuestImage:
    """Open the image and check the hash of each file and part; a few tenths of a second.

    :raises ImageError: see :func:`open_image`. :raises VerificationError: a file is not what it was when the image was built.
    """
    image = open_image(directory)
    for name in files_of(image.manifest):
        if file_sha256(directory / name) != image.manifest["files"][name]["sha256"]:
            raise VerificationError(
                f"{directory / name} was changed since the image was built: remove the image and build it again."
            )
    return image


def _check_size(path: Path, size: int) -> None:
    try:
        found = path.stat().st_size
    except OSError as error:
        raise ImageError(f"the guest image {path.parent} is damaged: {path.name}: {error.strerror}. Build it again.") from error
    if found != size:
        raise ImageError(
            f"the guest image {path.parent} is damaged: {path.name} has {found} bytes, expected {size}. Build it again."
        )
