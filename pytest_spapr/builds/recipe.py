"""How a minimal ``qemu-system-ppc64`` is configured: what the tests need, and nothing else, so that it builds in minutes.

Needed are: the pseries machine with TCG (and KVM on its own architecture), user networking (slirp), device trees (libfdt), and the
trace backend ``log``, through which DRC transitions are read from stderr.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final

from pytest_spapr.errors import BuildError

_COMMON: Final = (
    *("--target-list=ppc64-softmmu", "--prefix=/usr", "--disable-werror", "--disable-debug-info"),
    *("--enable-trace-backends=log", "--enable-fdt=system"),
)
# 5.2 knows no --without-default-features (that came with 6.0): what would be found, or asked for, in a toolchain is named.
_WITHOUT_5_2: Final = (
    *("docs", "tools", "guest-agent", "user", "blobs", "gnutls", "nettle", "gcrypt", "auth-pam", "sdl", "gtk", "curses", "iconv"),
    *("vnc", "virtfs", "virtiofsd", "libudev", "mpath", "xen", "brlapi", "curl", "rdma", "pvrdma", "vde", "linux-aio"),
    *(
        "linux-io-uring",
        "cap-ng",
        "attr",
        "spice",
        "rbd",
        "libiscsi",
        "libnfs",
        "smartcard",
        "libusb",
        "usb-redir",
        "lzo",
        "snappy",
    ),
    *(
        "bzip2",
        "zstd",
        "glusterfs",
        "tpm",
        "libssh",
        "numa",
        "libxml2",
        "opengl",
        "virglrenderer",
        "xfsctl",
        "bochs",
        "cloop",
        "dmg",
    ),
    *("vvfat", "parallels", "sheepdog", "capstone", "libpmem", "xkbcommon", "libdaxctl", "seccomp"),
)
_MODERN: Final = (
    "--without-default-features",
    *_COMMON,
    "--enable-slirp",
    "--enable-tcg",
    "--enable-system",
    "--disable-install-blobs",
)
_SINCE_8_1: Final = (*_MODERN, "--enable-pixman", "--disable-download")


@dataclass(frozen=True, slots=True)
class Recipe:
    """How one of Debian's sources is built.

    :ivar toolchain: the suites of compiler and headers; a later suite than the source's own where that one has gone from
        mirrors for some architecture. :ivar meson: whether configure must be told where meson is.
    """

    toolchain: tuple[str, ...]
    options: tuple[str, ...]
    meson: bool = False


#: The name of a packaged build -> how its source is built.
RECIPES: Final[Mapping[str, Recipe]] = {
    "5.2": Recipe(
        ("bookworm",), (*_COMMON, "--enable-slirp=system", *(f"--disable-{feature}" for feature in _WITHOUT_5_2)), meson=True
    ),
    "7.2": Recipe(("bookworm",), _MODERN, meson=True),
    "10.0": Recipe(("trixie",), _SINCE_8_1),
    "11.1": Recipe(("trixie",), _SINCE_8_1),
}

# A tree of QEMU's own repository has the firmware, and fetches what it leaves to other repositories.
_NOT_IN_A_TREE: Final = ("--disable-blobs", "--disable-install-blobs", "--disable-download")
#: From which version on QEMU is configured as which of the sources.
_SINCE: Final = (((8, 1), "10.0"), ((6, 0), "7.2"), ((5, 2), "5.2"))


def for_tree(version: str) -> Recipe:
    """Return how a tree of QEMU's own repository is built.

    :param version: what its file VERSION says, e.g. ``9.0.50``. :raises BuildError: it is too old, or no version.
    """
    parts = version.split(".")
    if len(parts) < 2 or not all(part.isdecimal() for part in parts):
        raise BuildError(f"{version!r} is no version of QEMU: expected one like 9.0.50 in the tree's file VERSION.")
    for since, name in _SINCE:
        if (int(parts[0]), int(parts[1])) >= since:
            recipe = RECIPES[name]
            return replace(recipe, options=tuple(option for option in recipe.options if option not in _NOT_IN_A_TREE))
    raise BuildError(f"QEMU {version} is too old to be built here: 5.2 is the oldest.")
