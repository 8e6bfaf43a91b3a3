"""Kernels: what a vmlinux is, and which of its modules an image needs."""

from __future__ import annotations

import lzma
import re
import shutil
import struct
import subprocess
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from pytest_spapr.errors import ImageError
from pytest_spapr.images.elf import EM_PPC64, EM_X86_64, ET_DYN, ET_EXEC, Elf, NotElf

# linux_banner, see init/version-timestamp.c; the format string in printk's own text has a % there.
_BANNER = re.compile(rb"Linux version ([0-9][^ \0]*) \(")
# Documentation/arch/x86/boot.rst: "HdrS", and where the version stands, as an offset from the second sector on.
_X86_MAGIC, _X86_VERSION = slice(0x202, 0x206), 0x20E
#: dpkg's architectures that there are images for, and what their programs are to ELF.
MACHINES = {"ppc64el": EM_PPC64, "amd64": EM_X86_64}
_MODULE = re.compile(r"(?P<name>[^/]+)\.ko(?P<packing>\.xz|\.zst|\.gz)?$")


def release(vmlinux: bytes, where: str) -> str:
    """Return the kernel's release, e.g. ``6.1.0-50-powerpc64le``, checking that pseries can boot it.

    :param where: names the file in errors.
    :raises ImageError: not an uncompressed little-endian ppc64 ELF kernel.
    """
    advice = "Give the uncompressed ppc64le ELF file `vmlinux` from the top of the kernel's build directory."
    try:
        elf = Elf(vmlinux)
    except NotElf as error:
        # x86: "MZ" or the boot sector magic; also what an EFI stub of any architecture looks like.
        kind = "an x86 bzImage or EFI image" if vmlinux[:2] == b"MZ" or vmlinux[0x202:0x206] == b"HdrS" else str(error)
        raise ImageError(f"{where} is not a kernel that the pseries machine boots: {kind}. {advice}") from error
    if elf.machine != EM_PPC64:
        raise ImageError(f"{where} is an ELF file for another machine (e_machine {elf.machine}, ppc64 is {EM_PPC64}). {advice}")
    if elf.type not in (ET_EXEC, ET_DYN):
        raise ImageError(f"{where} is a ppc64 ELF file, but not an executable one. {advice}")
    banner = _BANNER.search(vmlinux)
    if banner is None:
        raise ImageError(f"{where} is a ppc64 ELF file, but has no `Linux version` in it. {advice}")
    return banner[1].decode()


def x86_release(bzimage: bytes, where: str) -> str:
    """Return the release of an x86 kernel, e.g. ``6.1.0-50-amd64``. :param where: names the file in errors.

    :raises ImageError: it is no bzImage.
    """
    try:
        (offset,) = struct.unpack_from("<H", bzimage, _X86_VERSION)
    except struct.error:
        offset = 0
    words = bzimage[offset + 0x200 :][:256].split(b"\0")[0].split()
    if bzimage[_X86_MAGIC] != b"HdrS" or not offset or not words:
        raise ImageError(f"{where} is not a kernel that an x86-64 machine boots: no bzImage.")
    return words[0].decode(errors="replace")


def page_size(config: bytes | None) -> int | None:
    """Return the page size in bytes that a kernel's .config says, or None when there is none to ask."""
    if config is None:
        return None
    sizes = {b"CONFIG_PPC_4K_PAGES=y": 4096, b"CONFIG_PPC_64K_PAGES=y": 65536, b"CONFIG_X86_64=y": 4096}
    return next((size for line, size in sizes.items() if line in config.splitlines()), None)


@dataclass(frozen=True, slots=True)
class Module:
    """A kernel module, unpacked. :ivar needs: the names of the modules that it depends on itself."""

    data: bytes
    needs: tuple[str, ...]


def select_modules(
    names: Iterable[str], available: Mapping[str, Callable[[], bytes]], architecture: str = "ppc64el"
) -> dict[str, Module]:
    """Return the modules called ``names`` with all that they depend on, each after its dependencies.

    A name that is not available is taken as built in, or as not configured: only the guest can tell, and what needs it will say.
    Dependencies are read from the modules themselves: Debian's packages come without modules.dep.

    :param available: module name (underscores or dashes alike) -> reads its unpacked bytes.
    :param architecture: dpkg's name. :raises ImageError: a module is damaged or for another machine.
    """
    readers = {_plain(name): read for name, read in available.items()}
    chosen: dict[str, Module] = {}
    seen: set[str] = set()

    def add(name: str) -> None:
        if name in seen or name not in readers:
            return
        seen.add(name)
        data = readers[name]()
        # What is built in is nobody's dependency: modpost leaves it out.
        needs = tuple(map(_plain, _dependencies(name, data, architecture)))
        for dependency in needs:
            add(dependency)
        chosen[name] = Module(data, needs)

    for name in names:
        add(_plain(name))
    return chosen


def modules_dep(modules: Mapping[str, Module]) -> str:
    """Return what modprobe wants to know of them (depmod(8)): each with all that it needs, directly or not, what is needed first last."""
    needs: dict[str, list[str]] = {}
    # Each module comes after those that it depends on.
    for name, module in modules.items():
        direct = [need for need in module.needs if need in modules]
        indirect = [further for need in direct for further in needs.get(need, ())]
        # Of one that is needed in two ways, its last place counts.
        needs[name] = list(dict.fromkeys(reversed([*direct, *indirect])))[::-1]
    return "".join(f"{name}.ko:{''.join(f' {need}.ko' for need in found)}\n" for name, found in needs.items())


def module_name(path: str) -> str | None:
    """Return the module's name if ``path`` is one (.ko, packed or not)."""
    match = _MODULE.search(path)
    return _plain(match["name"]) if match else None


def unpacked(data: bytes, path: str) -> bytes:
    """Return a module's bytes without its packing (.xz, .zst, .gz by the name).

    :raises ImageError: when it cannot be unpacked.
    """
    try:
        if path.endswith(".xz"):
            return lzma.decompress(data)
        if path.endswith((".zst", ".gz")):
            return _by_tool("zstd" if path.endswith(".zst") else "gzip", data)
    except (lzma.LZMAError, subprocess.CalledProcessError) as error:
        raise ImageError(f"the kernel module {path} cannot be unpacked: {error}") from error
    return data


def modules_below(directory: Path, kernel_release: str) -> dict[str, Callable[[], bytes]]:
    """Return a reader for each module of ``kernel_release`` below a modules directory that the user named.

    :param directory: ``.../lib/modules/RELEASE``, or one of the directories above it.
    :raises ImageError: when there is no such release below it.
    """
    candidates = (directory, directory / kernel_release, directory / "modules" / kernel_release)
    below = directory / "lib/modules" / kernel_release
    root = next((path for path in (*candidates, below) if path.name == kernel_release and path.is_dir()), None)
    if root is None:
        raise ImageError(
            f"{directory} has no modules for the kernel {kernel_release}: expected lib/modules/{kernel_release} below it, as "
            "`make modules_install INSTALL_MOD_PATH=DIR` makes it."
        )
    found = {name: path for path in sorted(root.rglob("*.ko*")) if (name := module_name(path.name))}
    return {name: _reader(path) for name, path in found.items()}


def _reader(path: Path) -> Callable[[], bytes]:
    return lambda: unpacked(path.read_bytes(), str(path))


def _dependencies(name: str, data: bytes, architecture: str) -> list[str]:
    try:
        elf = Elf(data)
        info = elf.section(".modinfo")
    except NotElf as error:
        raise ImageError(f"the kernel module {name} is damaged: {error}") from error
    if elf.machine != MACHINES[architecture] or info is None:
        raise ImageError(f"the kernel module {name} is not a module for {architecture}")
    depends = [field.removeprefix(b"depends=") for field in info.split(b"\0") if field.startswith(b"depends=")]
    return [name for field in depends for name in field.decode().split(",") if name]


def _by_tool(tool: str, data: bytes) -> bytes:
    if shutil.which(tool) is None:
        raise ImageError(f"the kernel's modules are packed, and this machine has no `{tool}` to unpack them: install it.")
    return subprocess.run([tool, "-dc"], input=data, capture_output=True, check=True).stdout


def _plain(name: str) -> str:
    return name.replace("-", "_")
