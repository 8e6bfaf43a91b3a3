"""Configures and compiles one kept tree; shows how far it is, and says what failed in the compiler's own words."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from pytest_spapr.builds.recipe import Recipe
from pytest_spapr.builds.toolchain import Toolchain
from pytest_spapr.cache import cache_errors
from pytest_spapr.errors import BuildError
from pytest_spapr.progress import Progress

_TARGET: Final = "qemu-system-ppc64"
_STATE: Final = "configured.json"
_NINJA_STATUS: Final = "[%f/%t] "
_STEP: Final = re.compile(r"\[(\d+)/(\d+)\] (.*)")
_FAILED: Final = "FAILED: "
_LINES: Final = 20
# A compiler's command line has thousands.
_COLUMNS: Final = 200


class Maker:
    """Makes the binary of one tree.

    :param root: the tree's directory, in which ``obj/`` and ``build.log`` stand. :param version: of the source, for QEMU's own version.
    :param stamp: what else the configuration depends on, where the source changes by other means than patches.
    :ivar configure_line: the options that the tree is configured with.
    """

    def __init__(
        self, root: Path, tools: Toolchain, version: str, recipe: Recipe, progress: Progress, *, stamp: str = ""
    ) -> None:
        self._root = root
        self._tools = tools
        self._progress = progress
        self._objects = root / "obj"
        self._log = root / "build.log"
        kvm = ["--enable-kvm"] if tools.architecture == "ppc64el" else ["--disable-kvm"]
        self.configure_line = [*recipe.options, *kvm, f"--with-pkgversion=built from {version}"]
        self._meson = recipe.meson
        # All that a configured tree depends on and ninja does not watch.
        self._state: dict[str, Any] = {
            "place": str(root),
            "version": version,
            "options": self.configure_line,
            "toolchain": dict(tools.packages),
            **({"stamp": stamp} if stamp else {}),
        }

    def is_current(self, source: Path) -> bool:
        """Whether the tree is there, and was configured from the same source in the same way with the same toolchain."""
        return source.is_dir() and self._recorded() == self._state

    def forget(self) -> None:
        """Have the next :meth:`make` configure anew and compile everything."""
        with cache_errors(self._root):
            (self._root / _STATE).unlink(missing_ok=True)
            shutil.rmtree(self._objects, ignore_errors=True)

    def make(self, source: Path, jobs: int) -> Path:
        """Configure, if that is not done, and compile; return the binary.

        :raises BuildError: with the last words of what failed, and where the whole log is.
        """
        with cache_errors(self._root):
            if self._recorded() != self._state:
                self._configure(source)
            self._progress.phase("compiling QEMU")
            command = [self._tools.tool("ninja"), "-C", str(self._objects), f"-j{jobs}", _TARGET]
            self._run(command, "compiling", self._objects, self._show)
        return self._objects / _TARGET

    def _configure(self, source: Path) -> None:
        self._progress.phase("configuring QEMU")
        shutil.rmtree(self._objects, ignore_errors=True)
        self._objects.mkdir()
        options = [*self.configure_line, f"--cc={self._tools.compiler}", f"--host-cc={self._tools.compiler}"]
        if self._meson:
            options.append(f"--meson={self._tools.tool('meson')}")
        self._run(["/bin/sh", str(source / "configure"), *options], "configuring", self._objects, lambda _line: None)
        (self._root / _STATE).write_text(json.dumps(self._state))

    def _recorded(self) -> object:
        try:
            return json.loads((self._root / _STATE).read_text())
        except (OSError, ValueError):
            return None

    def _show(self, line: str) -> None:
        if match := _STEP.match(line):
            self._progress.update(int(match[1]), int(match[2]), match[3].rpartition(" ")[2])

    def _run(self, command: Sequence[str], what: str, directory: Path, show: Callable[[str], None]) -> None:
        """Run a step with the toolchain's variables and none of the host's, its output in the log."""
        environment = {**self._tools.environment, "HOME": str(self._root), "NINJA_STATUS": _NINJA_STATUS}
        lines: list[str] = []
        with self._log.open("w") as log:
            log.write(f"{' '.join(command)}\n")
            process = subprocess.Popen(
                command,
                cwd=directory,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
            )
            with process:
                assert process.stdout is not None
                try:
                    for line in process.stdout:
                        log.write(line)
                        lines.append(line.rstrip())
                        show(line)
                except BaseException:
                    process.terminate()
                    raise
        if process.returncode != 0:
            raise BuildError(
                f"{what} QEMU failed (exit status {process.returncode}). The whole log is {self._log}. It says:\n{_extract(lines)}"
            )


def _extract(lines: Sequence[str]) -> str:
    """Return the part of a log that begins with ninja's first failure, or its end."""
    first = next((number for number, line in enumerate(lines) if line.startswith(_FAILED)), max(0, len(lines) - _LINES))
    return "\n".join(f"  {line[:_COLUMNS]}" for line in lines[first : first + _LINES])
