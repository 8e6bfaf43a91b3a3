"""A program of its own, which ``git bisect run`` starts for each commit: ``python -m pytest_spapr.bisect.step PLAN``.

It builds what is checked out and asks the test. Exit status 0: good, 1: bad, 125: cannot tell, each of them told in the journal before;
255, which ends the bisection: nothing could be done, for a reason that is not the commit's.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from pytest_spapr import config
from pytest_spapr.avocado.verdict import read_junit
from pytest_spapr.bisect.asking import Ruling, Said, State, read_answer, rule
from pytest_spapr.bisect.checkout import git, head
from pytest_spapr.bisect.journal import Broken, Journal, Told
from pytest_spapr.bisect.making import OPTIONS, Making
from pytest_spapr.builds.source import require_buildable
from pytest_spapr.cache import Cache
from pytest_spapr.debian.apt import file_sha256
from pytest_spapr.debian.mirror import mirror_of
from pytest_spapr.errors import BuildError, SpaprError
from pytest_spapr.images import store

_ABORT: Final = 255
_SHORT: Final = 12


@dataclass(frozen=True, slots=True)
class Plan:
    """What each step needs to know.

    :ivar root: the directory that has ``src``. :ivar output: where logs, reports and artefacts go, a directory for each commit.
    :ivar directory: where pytest runs. :ivar test: its arguments. :ivar settings: of the cache and the network, as their options say it.
    :ivar runs: how often each commit is asked. :ivar intermittent: see :func:`~pytest_spapr.bisect.asking.rule`.
    """

    root: str
    output: str
    directory: str
    test: Sequence[str]
    making: Making
    settings: dict[str, Any] = field(default_factory=dict)
    runs: int = 2
    intermittent: bool = False

    @property
    def journal(self) -> Path:
        return Path(self.output) / "journal.jsonl"

    def write(self) -> Path:
        """Write it down for steps, and return where."""
        path = Path(self.output) / "plan.json"
        path.write_text(json.dumps(asdict(self)))
        return path

    @classmethod
    def read(cls, path: Path) -> Plan:
        facts = json.loads(path.read_text())
        return cls(**{**facts, "making": Making(**facts["making"])})


class _Step:
    """One commit's step."""

    def __init__(self, plan: Plan, journal: Journal) -> None:
        self._plan = plan
        self._journal = journal
        self._commit = head(Path(plan.root) / "src")
        self._output = Path(plan.output) / self._commit[:_SHORT]
        self._settings = config.read(plan.settings)
        self._cache = Cache(self._settings.cache_dir.value)
        self._runs = 0

    def take(self) -> Ruling:
        """Build and ask; tell the journal. :raises SpaprError: nothing can be done here."""
        began = time.monotonic()
        if self._plan.making.kind == "qemu" and self._plan.making.command is None:
            require_buildable(self._cache)
        built = tested = began
        try:
            binary = self._plan.making.make(Path(self._plan.root), self._cache, self._mirror, self._journal)
        except BuildError as error:
            built = tested = time.monotonic()
            ruling = Ruling(State.UNKNOWN, f"it cannot be built: {error}")
        else:
            built = time.monotonic()
            ruling = rule(lambda: self._ask(binary), self._plan.runs, intermittent=self._plan.intermittent)
            tested = time.monotonic()
            if self._plan.making.kind == "kernel":
                self._forget(binary)
        self._journal.tell(Told(self._commit, ruling, built - began, tested - built))
        return ruling

    def _ask(self, binary: Path) -> Said:
        self._runs += 1
        self._journal.phase(f"testing {self._commit[:_SHORT]}, run {self._runs}")
        place = self._output / f"run-{self._runs}"
        # The endpoints may be asked in two parts.
        while place.exists():
            place = place.with_name(f"{place.name}+")
        place.mkdir(parents=True)
        report = place / "junit.xml"
        option = OPTIONS[self._plan.making.kind]
        words = [
            f"{option}={binary}",
            f"--junitxml={report}",
            f"--spapr-artefacts={place / 'artefacts'}",
            "-p",
            "no:cacheprovider",
        ]
        words.append(f"--spapr-cache-dir={self._cache.root}")
        if self._settings.offline.value:
            words.append("--spapr-offline")
        if self._settings.debian_mirror.value is not None:
            words.append(f"--spapr-debian-mirror={self._settings.debian_mirror.value}")
        with (place / "output.txt").open("wb") as output:
            status = subprocess.run(
                [sys.executable, "-m", "pytest", *words, *self._plan.test],
                cwd=self._plan.directory,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                check=False,
            ).returncode
        return read_answer(read_junit(report), status)

    def _mirror(self) -> str:
        return mirror_of(self._settings, "QEMU's toolchain", "`spapr qemu build` gets it")

    def _forget(self, vmlinux: Path) -> None:
        """Remove the images that have this kernel: nobody asks for them again, and each has 80 MB."""
        digest = file_sha256(vmlinux)
        for entry in (self._cache.root / store.KIND).glob("*"):
            try:
                image = store.open_image(entry)
            except SpaprError:
                continue
            # Of an image of a recipe's own kernel the name has no plus sign.
            if "+" in image.name and image.manifest["files"][store.VMLINUX]["sha256"] == digest:
                self._cache.remove(store.KIND, entry.name)


def main(plan: Path) -> int:
    """Take a step and return the exit status."""
    read = Plan.read(plan)
    journal = Journal(read.journal)
    try:
        try:
            return _Step(read, journal).take().state.status
        finally:
            # git does not check out another commit over what a build changed.
            git(Path(read.root) / "src", "reset", "--quiet", "--hard")
    except (SpaprError, OSError) as error:
        journal.tell(Broken(str(error)))
        return _ABORT
    except Exception as error:  # noqa: BLE001 - Python's own status for it would say that the commit is bad
        journal.tell(Broken(f"{type(error).__name__}: {error}"))
        return _ABORT


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
