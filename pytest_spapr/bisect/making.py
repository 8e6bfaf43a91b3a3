"""Builds what is checked out, on top of what was compiled before: QEMU in our own way, Linux by its own, or both by a command."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pytest_spapr.builds import recipe, store, toolchain
from pytest_spapr.builds.make import Maker
from pytest_spapr.cache import Cache, cache_errors
from pytest_spapr.debian.apt import file_sha256
from pytest_spapr.errors import BuildError, ConfigError
from pytest_spapr.progress import Progress

#: What each kind of tree gives the suite to test, by which option, and where a command of the user's leaves it unless it is told.
OPTIONS: Final[Mapping[str, str]] = {"qemu": "--spapr-qemu", "kernel": "--spapr-kernel"}
BINARIES: Final[Mapping[str, str]] = {"qemu": "build/qemu-system-ppc64", "kernel": "vmlinux"}
_CROSS: Final = "powerpc64le-linux-gnu-"
_LINES: Final = 5
_COLUMNS: Final = 300


@dataclass(frozen=True, slots=True)
class Making:
    """How a tree is built.

    :ivar kind: ``qemu`` or ``kernel``. :ivar command: the user's own, for the shell; None for ours. :ivar binary: where that leaves it,
        relative to the tree. :ivar config: the kernel's, for our own command. :ivar jobs: compilers at a time.
    """

    kind: str
    jobs: int
    command: str | None = None
    binary: str = ""
    config: str | None = None

    def check(self) -> None:
        """Check what can be known before anything is built. :raises ConfigError: something is missing."""
        if self.kind == "kernel" and self.command is None:
            if self.config is None:
                raise ConfigError(
                    "a kernel needs a configuration: give --kernel-config=FILE, or with --build=COMMAND how it is built (docs/patches.md)."
                )
            if not Path(self.config).is_file():
                raise ConfigError(f"--kernel-config={self.config}: there is no such file. Give the .config of a ppc64le kernel.")
            _compiler()

    def make(self, root: Path, cache: Cache, mirror: Callable[[], str], progress: Progress) -> Path:
        """Build ``root/src`` and return the binary; seconds to an hour.

        :param mirror: returns the mirror that QEMU's toolchain may be fetched from.
        :raises BuildError: it cannot be built, with the last words of what failed. :raises SpaprError: the toolchain cannot be had.
        """
        if self.command is not None:
            return self._commanded(root, self.command, progress)
        return self._qemu(root, cache, mirror, progress) if self.kind == "qemu" else self._kernel(root, progress)

    def _qemu(self, root: Path, cache: Cache, mirror: Callable[[], str], progress: Progress) -> Path:
        try:
            version = (root / "src/VERSION").read_text().strip()
        except OSError as error:
            raise BuildError("it has no file VERSION: this is no tree of QEMU") from error
        how = recipe.for_tree(version)
        with ExitStack() as hold:
            tools = toolchain.obtain(how.toolchain, store.architecture(), cache, mirror, progress, hold)
            # ninja does not watch this file: a commit whose configure differs is configured anew.
            stamp = file_sha256(root / "src/configure")
            return Maker(root, tools, "a tree of git", how, progress, stamp=stamp).make(root / "src", self.jobs)

    def _kernel(self, root: Path, progress: Progress) -> Path:
        assert self.config is not None
        objects = root / "obj"
        given = Path(self.config).read_bytes()
        with cache_errors(root):
            objects.mkdir(exist_ok=True)
            seed = root / "config.given"
            if not seed.exists() or seed.read_bytes() != given or not (objects / ".config").exists():
                (objects / ".config").write_bytes(given)
                seed.write_bytes(given)
        words = [
            "make",
            "-C",
            str(root / "src"),
            f"O={objects}",
            "ARCH=powerpc",
            f"CROSS_COMPILE={_compiler()}",
            f"-j{self.jobs}",
        ]
        progress.phase("compiling Linux")
        # What a commit asks anew has its default.
        _run([*words, "olddefconfig"], root, root)
        _run([*words, "vmlinux"], root, root)
        return objects / "vmlinux"

    def _commanded(self, root: Path, command: str, progress: Progress) -> Path:
        progress.phase("building")
        _run(["/bin/sh", "-c", command], root / "src", root)
        binary = root / "src" / self.binary
        if not binary.is_file():
            raise BuildError(f"`{command}` ended well but left no {self.binary}: name with --binary what it makes")
        return binary


def _compiler() -> str:
    """Return what the names of the tools for ppc64le begin with here. :raises ConfigError: there is no such compiler."""
    if platform.machine() == "ppc64le":
        return ""
    if shutil.which(f"{_CROSS}gcc") is None:
        raise ConfigError(
            f"there is no {_CROSS}gcc on PATH, which compiles a ppc64le kernel here (Debian: gcc-powerpc64le-linux-gnu): install it, or "
            "give with --build=COMMAND how the kernel is built."
        )
    return _CROSS


def _run(command: Sequence[str], directory: Path, root: Path) -> None:
    """Run a step of a build, its output in the log. :raises BuildError: it failed."""
    log = root / "build.log"
    with cache_errors(root), log.open("w") as stream:
        environment = {**os.environ, "LC_ALL": "C.UTF-8"}
        result = subprocess.run(
            command,
            cwd=directory,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=subprocess.STDOUT,
            check=False,
        )
    if result.returncode != 0:
        last = [line[:_COLUMNS] for line in log.read_text(errors="replace").splitlines() if line.strip()][-_LINES:]
        raise BuildError(f"`{command[-1]}` failed (exit status {result.returncode}): {' | '.join(last) or 'it said nothing'}")
