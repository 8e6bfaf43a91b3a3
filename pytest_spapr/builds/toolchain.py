"""What builds a QEMU: compiler, build tools and headers out of one Debian suite, in a private directory, run without root.

Nothing of the host but its kernel, ``/bin/sh`` and coreutils takes part, so a build is the same on every host, and an old QEMU is not
met with a compiler that is too new. The programs are changed to start through the directory's own ``ld.so`` and to look for their
libraries there; both are paths, so a toolchain that was moved is made anew.
"""

from __future__ import annotations

import json
import os
import re
import struct
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pytest_spapr.builds import store
from pytest_spapr.cache import Cache, cache_errors
from pytest_spapr.debian.apt import AptState, Package
from pytest_spapr.debian.unpack import unpack
from pytest_spapr.errors import BuildError
from pytest_spapr.progress import Progress

KIND: Final = "toolchain"
_MANIFEST: Final = "toolchain.json"
_FORMAT: Final = 5
_PACKAGES: Final = (
    *("gcc", "libc6-dev", "make", "ninja-build", "meson", "pkgconf", "python3", "patch"),
    # Since 8.1 configure makes a venv; with pip at hand it does so without Debian's wheels, whose place below / is fixed.
    *("python3-venv", "python3-pip", "python3-setuptools"),
    *("libglib2.0-dev", "libpixman-1-dev", "zlib1g-dev", "libfdt-dev", "libslirp-dev"),
)
# Trixie's patchelf 0.18 makes cc1 and Python crash: it breaks programs with fixed addresses whose dynamic strings must grow.
_PATCHELF_SUITE: Final = "bookworm"
_EXCLUDED: Final = (
    "usr/share/doc/*",
    "usr/share/man/*",
    "usr/share/locale/*",
    "usr/share/lintian/*",
    "usr/share/info/*",
    "var/*",
)
_PROGRAMS: Final = ("usr/bin", "bin", "usr/lib/gcc", "usr/libexec/gcc")
_PYTHON: Final = re.compile(rb"#! ?/usr/bin/python3\b")
_PT_INTERP: Final = 3


@dataclass(frozen=True)
class Toolchain:
    """A toolchain, ready to run.

    :ivar prefix: what stands for ``/``: tools, headers, libraries. :ivar environment: all variables that its programs need.
    :ivar packages: versions by name.
    """

    prefix: Path
    architecture: str
    environment: Mapping[str, str]
    packages: Mapping[str, str]

    def tool(self, name: str) -> str:
        """Return the path of a program."""
        return str(self.prefix / "usr/bin" / name)

    @property
    def patchelf(self) -> list[str]:
        """The command that changes how a program starts."""
        return _patchelf(self.prefix.parent, self.architecture)

    @property
    def compiler(self) -> str:
        """The C compiler for programs that run here, wherever the host's libraries are."""
        return str(self.prefix.parent / "cc")


def obtain(
    suites: Sequence[str], architecture: str, cache: Cache, mirror: Callable[[], str], progress: Progress, hold: ExitStack
) -> Toolchain:
    """Return the toolchain of these suites, made unless it is in the cache: 73 MB to fetch, 10 s, 270 MB on disk.

    :param mirror: called for the base URL only when there is something to fetch. :param hold: nobody removes it before this is closed.
    :raises SpaprError: what fetching packages raises. :raises BuildError: the packages are not what is known of the suite.
    """
    key = f"{'+'.join(suites)}-{architecture}"
    with cache.lock(f"{KIND}-{key}", progress):
        found = _open(cache.entry(KIND, key))
        if found is None:
            _make(key, suites, architecture, cache, mirror, progress)
            found = _open(cache.entry(KIND, key))
        if found is None:
            raise BuildError(
                f"the toolchain in {cache.entry(KIND, key)} is damaged right after it was made: remove the directory."
            )
        hold.enter_context(cache.using(KIND, key))
        return found


def _make(
    key: str, suites: Sequence[str], architecture: str, cache: Cache, mirror: Callable[[], str], progress: Progress
) -> None:
    debs = _fetch(suites, _PACKAGES, architecture, cache, mirror(), progress)
    patchelf = _fetch((_PATCHELF_SUITE,), ("patchelf",), architecture, cache, mirror(), progress)
    cache.require_space(500_000_000, "unpacking the toolchain")
    progress.phase(f"unpacking the toolchain of {', '.join(suites)}")
    with cache.publish(KIND, key) as scratch, cache_errors(scratch):
        final = cache.entry(KIND, key)
        unpack(list(debs.values()), scratch / "root", _EXCLUDED, progress)
        unpack(list(patchelf.values()), scratch / "patchelf", _EXCLUDED, progress)
        _settle(scratch, final / "root", architecture)
        _write_compiler(scratch / "cc", final / "root", architecture)
        versions = {package.name: package.version for package in debs}
        facts = {
            "format": _FORMAT,
            "place": str(final),
            "architecture": architecture,
            "packages": dict(sorted(versions.items())),
        }
        (scratch / _MANIFEST).write_text(json.dumps(facts, indent=1))


def _fetch(
    suites: Sequence[str], names: Sequence[str], architecture: str, cache: Cache, mirror: str, progress: Progress
) -> dict[Package, Path]:
    apt = AptState(cache, mirror, suites, architecture, progress)
    with cache.lock(apt.name, progress):
        return apt.fetch(names)


def _open(entry: Path) -> Toolchain | None:
    """Return the toolchain in ``entry``; None if there is none that is whole, of this format, and where it was made."""
    try:
        facts = json.loads((entry / _MANIFEST).read_text())
        architecture, packages = facts["architecture"], facts["packages"]
        if facts["format"] != _FORMAT or facts["place"] != str(entry):
            return None
    except (OSError, ValueError, KeyError, TypeError):
        return None
    prefix = entry / "root"
    triplet = store.triplet_of(architecture)
    environment = {
        "PATH": os.pathsep.join((str(prefix / "usr/bin"), "/usr/bin", "/bin")),
        "PKG_CONFIG_SYSROOT_DIR": str(prefix),
        "PKG_CONFIG_LIBDIR": os.pathsep.join((str(prefix / f"usr/lib/{triplet}/pkgconfig"), str(prefix / "usr/share/pkgconfig"))),
        "PYTHONNOUSERSITE": "1",
        "LC_ALL": "C.UTF-8",
    }
    return Toolchain(prefix, architecture, environment, packages)


def _settle(scratch: Path, final: Path, architecture: str) -> None:
    """Make programs and links in ``scratch/root`` good for ``final``, where that will be."""
    root = scratch / "root"
    for name in ("lib", "lib64"):
        # Since trixie packages have all in /usr; these two links are base-files'.
        if not (root / name).exists() and (root / "usr" / name).exists():
            (root / name).symlink_to(f"usr/{name}")
    for link in _links(root):
        target = link.readlink()
        if target.is_absolute():
            link.unlink()
            link.symlink_to(os.path.relpath(root / target.relative_to("/"), link.parent.resolve()))
    for script in (root / "usr/bin").iterdir():
        if script.is_file() and not script.is_symlink() and (found := _PYTHON.match(text := script.read_bytes())):
            script.write_bytes(b"#!/usr/bin/env python3" + text[found.end() :])
    loader = store.loader_below(root, architecture)
    if loader is None:
        raise BuildError(
            "the toolchain's packages have no dynamic loader: its suite is not what this version of the package knows."
        )
    interpreter = final / loader.relative_to(root)
    change = ["--set-interpreter", str(interpreter), "--force-rpath", "--set-rpath", store.library_path(final, architecture)]
    programs = [str(path) for path in _programs(root)]
    result = subprocess.run([*_patchelf(scratch, architecture), *change, *programs], capture_output=True, text=True, check=False)
    if result.returncode != 0:
        raise BuildError(f"patchelf cannot change the toolchain's programs: {result.stderr.strip()}")


def _patchelf(entry: Path, architecture: str) -> list[str]:
    """Return the command that runs patchelf through its own loader."""
    prefix = entry / "patchelf"
    return [
        str(store.loader_below(prefix, architecture)),
        "--library-path",
        store.library_path(prefix, architecture),
        str(prefix / "usr/bin/patchelf"),
    ]


def _links(root: Path) -> Iterator[Path]:
    for parent, directories, files in os.walk(root):
        yield from (path for name in (*directories, *files) if (path := Path(parent, name)).is_symlink())


def _programs(root: Path) -> Iterator[Path]:
    """Yield the ELF files that the kernel starts."""
    for base in _PROGRAMS:
        if (root / base).is_symlink():
            continue
        for path in sorted((root / base).rglob("*")):
            if path.is_file() and not path.is_symlink() and _has_interpreter(path):
                yield path


def _has_interpreter(path: Path) -> bool:
    """Whether a file is a 64-bit little-endian ELF program with a dynamic loader."""
    with path.open("rb") as stream:
        start = stream.read(4096)
    if start[:6] != b"\x7fELF\x02\x01":
        return False
    (offset,), (size, count) = struct.unpack_from("<Q", start, 32), struct.unpack_from("<HH", start, 54)
    return any(struct.unpack_from("<I", start, offset + size * index)[0] == _PT_INTERP for index in range(count))


def _write_compiler(script: Path, final: Path, architecture: str) -> None:
    """Write a ``cc`` whose programs run here without the host's libraries: configure scripts start some."""
    libraries = store.library_path(final, architecture).split(":")
    loader = final / "lib" / store.triplet_of(architecture) / store.loader_name(architecture)
    options = [f"-Wl,--dynamic-linker={loader}", "-Wl,--disable-new-dtags", *(f"-Wl,-rpath,{path}" for path in libraries)]
    words = " ".join(f"'{word}'" for word in (str(final / "usr/bin/gcc"), f"--sysroot={final}", *options))
    script.write_text(f'#!/bin/sh\nexec {words} "$@"\n')
    script.chmod(0o755)
