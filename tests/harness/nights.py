"""A nightly with results, a matrix and temporary files of its own, and what tasks of it come to."""

from __future__ import annotations

import os
import select
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from ci.night.job import ROOT
from pytest_spapr.avocado.night import Night, Task, read_night
from pytest_spapr.cells import Cell

from .telling import named, started

_SECONDS = 90.0
_FOR_A_WHILE = """
from pathlib import Path
from ci.night.job import Avocado
from pytest_spapr.avocado.container import Container
container = Container(image={image!r}, mounts={mounts!r}) if {image!r} else None
avocado = Avocado(results=Path({results!r}), timeout={seconds}, jobs=1, container=container)
avocado.run(["--mux-yaml", {file!r}], [{test!r}])
"""
#: Sources of test modules.
ENDS = {
    "passes": "def test_it(launch_machine): assert launch_machine(image=None).status() == 'running'",
    "fails": "def test_it(launch_machine): assert launch_machine(image=None).status() == 'broken'",
    "skips": "import pytest\ndef test_it(): pytest.skip('not today')",
    "has_an_error": "import pytest\n@pytest.fixture\ndef no(): raise OSError\ndef test_it(no): pass",
    "fails_as_expected": "import pytest\n@pytest.mark.xfail(strict=True)\ndef test_it(): assert False",
}


@dataclass
class Place:
    """Where a nightly runs: results, matrix and scratch of its own."""

    path: Path
    qemu: str
    temporary: Path
    watched: list[int] = field(default_factory=list)

    def matrix(self, *modules: str, qemu: str | None = None) -> Path:
        file = self.path / "m.yaml"
        tests = "\n".join(f"  - {self.path / module}" for module in modules)
        file.write_text(f"tests:\n{tests}\nbuild: !mux\n  one:\n    qemu: '{qemu or self.qemu}'\n")
        return file

    def command(self, file: Path, *more: str) -> list[str]:
        return [sys.executable, "-m", "ci.night", f"--matrix={file}", f"--results={self.path / 'r'}", "--without-sheet", *more]

    def run(self, file: Path, *more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(self.command(file, *more), cwd=ROOT, env=self.env(), capture_output=True, text=True, check=False)

    def for_a_while(self, file: Path, module: str, *, seconds: int, image: str = "") -> list[str]:
        """Return a command for one task that may take so long. :param image: what it has a container of, if anything."""
        words = {"results": str(self.path / "r"), "file": str(file), "test": str(self.path / module), "mounts": [str(self.path)]}
        return [sys.executable, "-c", _FOR_A_WHILE.format(**words, seconds=seconds, image=image)]

    def env(self) -> dict[str, str]:
        return {**os.environ, "TMPDIR": str(self.temporary)}

    def night(self) -> Night:
        return read_night(self.path / "r" / "latest")

    def left(self) -> list[str]:
        """Return what is left of temporary files; the locks of slots stay."""
        return [path.name for path in self.temporary.iterdir() if path.name != f"pytest-spapr-{os.getuid()}"]

    def all_ended(self) -> bool:
        """Wait for the end of all watched processes."""
        return all(select.select([one], [], [], _SECONDS)[0] for one in self.watched)

    def waiting(self, source: str) -> Path:
        """Write a module, ``test_waits.py``, whose test tells a pipe, ``told``, who is there, and return a matrix of it."""
        told = self.path / "told"
        os.mkfifo(told)
        (self.path / "test_waits.py").write_text(source.format(told=str(told)))
        return self.matrix("test_waits.py")

    def outcome(self, command: list[str], act: Callable[[subprocess.Popen[str]], object]) -> tuple[Task, int, str]:
        """Run a nightly of one task, of which nothing may be left; return the task, the nightly's status and what it said.

        :param act: does something to the nightly while it runs.
        """
        with started(command, ROOT, self.env()) as nightly:
            act(nightly)
            said = nightly.communicate(timeout=_SECONDS)[0]
        assert self.nothing_left()
        (task,) = self.night().tasks
        return task, nightly.returncode, said

    def nothing_left(self) -> bool:
        """Wait for the end of all watched processes; return whether they left nothing."""
        return self.all_ended() and not self.left()


@contextmanager
def placed(cell: Cell, path: Path) -> Iterator[Place]:
    """Make one."""
    with ExitStack() as opened:
        # Names of sockets are short.
        temporary = Path(opened.enter_context(tempfile.TemporaryDirectory()))
        one = Place(path, named(cell.build()), temporary)
        yield one
        for descriptor in one.watched:
            opened.callback(os.close, descriptor)


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
