"""Who is to notice a break, the cheapest first: the probe, tests without a guest, an exploration without one, tests with one."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Protocol

from ci.mutation.breaks import Break
from pytest_spapr.errors import BuildError
from pytest_spapr.explore import findings
from pytest_spapr.qemu.behaviour import BEHAVIOURS
from pytest_spapr.qemu.build import QemuBuild

ROOT: Final = Path(__file__).parents[2]
#: Of the exploration: one row of histories for all breaks.
SEED, EXAMPLES = 1, 40
#: What shows a break to tests that need no guest.
WITHOUT_GUEST: Final = tuple(f"tests/qemu/test_{name}.py" for name in ("drc_model", "slots", "vmstate", "connectors"))
#: For a break that names no tests of its own.
WITH_GUEST: Final = ("tests/hotplug/test_every_kind.py",)
IMAGE: Final = "debian-12"
_SHRINK_SECONDS: Final = 20
_SPAPR: Final = (sys.executable, "-c", "import sys; from pytest_spapr.cli import main; sys.exit(main())")
_PYTEST: Final = (sys.executable, "-m", "pytest", "-q", "-x", "-rfE", "-p", "no:cacheprovider", "--spapr-timeline=off")
# An id may have blanks: a test's parameters are texts.
_FAILED: Final = re.compile(r"^(?:FAILED|ERROR) (.+?::.+?)(?: - .*)?$", re.MULTILINE)
_QUIET, _NOTICED = 0, 1


@dataclass(frozen=True, kw_only=True, slots=True)
class Seen:
    """What a watcher saw of a build. :ivar said: what is wrong, or an empty string. :ivar tests: those that failed.

    :ivar problem: why it could not watch to its end.
    """

    said: str = ""
    tests: tuple[str, ...] = ()
    problem: str = ""


class Watcher(Protocol):
    """:ivar name: for the table."""

    @property
    def name(self) -> str: ...

    def watch(self, build: str, broken: Break, directory: Path) -> Seen:
        """Look at a build. :param broken: what is wrong with it. :param directory: for what is left of it, a log for one."""

    def is_sound(self, build: str, seen: Seen, directory: Path) -> bool:
        """Return whether the unbroken build shows nothing of what was seen of a broken one."""


class Commands(Protocol):
    """Runs commands."""

    def __call__(self, command: Sequence[str], log: Path) -> int | None:
        """Run a command in the checkout, all that it says into the log; return its status, or None if it took too long."""


def commands(minutes: float) -> Commands:
    """Return what runs commands for so long at most. A QEMU ends with the process that started it."""

    def run(command: Sequence[str], log: Path) -> int | None:
        # What is tested is said by the command alone.
        env = {name: value for name, value in os.environ.items() if name not in ("SPAPR_QEMU", "SPAPR_IMAGE")}
        with log.open("w", encoding="utf-8") as stream:
            try:
                done = subprocess.run(
                    command,
                    cwd=ROOT,
                    env=env,
                    stdin=subprocess.DEVNULL,
                    stdout=stream,
                    stderr=stream,
                    check=False,
                    timeout=60 * minutes,
                )
            except subprocess.TimeoutExpired:
                return None
        return done.returncode

    return run


@dataclass(frozen=True, slots=True)
class Probe:
    """What each run asks a build first: contracts are chosen by its answers, so that one who only heeds contracts would not see these.

    :ivar build: by name, probed. :ivar plain: the unbroken one's name.
    """

    build: Callable[[str], QemuBuild]
    plain: str
    name: str = "probe"

    def watch(self, build: str, _broken: Break, _directory: Path) -> Seen:
        try:
            probed = self.build(build)
        except BuildError as error:
            return Seen(said=f"it does not start: {str(error).splitlines()[0]}")
        if probed.unprobed is not None:
            return Seen(said=probed.unprobed.splitlines()[0])
        was, must = (one.features & BEHAVIOURS.keys() for one in (probed, self.build(self.plain)))
        words = [*(f"does not: {name}" for name in sorted(must - was)), *(f"does: {name}" for name in sorted(was - must))]
        return Seen(said=", ".join(words))

    def is_sound(self, build: str, _seen: Seen, _directory: Path) -> bool:
        # It is what was compared with.
        return self.build(build).unprobed is None


@dataclass(slots=True)
class Exploration:
    """``spapr explore --no-guest`` with a fixed seed, up to the first violation."""

    run: Commands
    name: str = "explore"
    _plain: dict[str, Seen] = field(default_factory=dict)

    def watch(self, build: str, _broken: Break | None, directory: Path) -> Seen:
        log = directory / "explore.log"
        options = (
            "--no-guest",
            "--guided",
            f"--seed={SEED}",
            f"--examples={EXAMPLES}",
            "--fresh",
            "--first",
            f"--shrink={_SHRINK_SECONDS}",
        )
        status = self.run([*_SPAPR, "explore", f"--qemu={build}", *options, f"--output={directory}"], log)
        if status not in (_QUIET, _NOTICED):
            return Seen(problem=_problem(self.name, status, log))
        if status == _QUIET:
            return Seen()
        [found] = directory.glob("explore-*/violation-1/history.json")
        return Seen(said=findings.load(found)[1])

    def is_sound(self, build: str, _seen: Seen, directory: Path) -> bool:
        # It always plays the same.
        if build not in self._plain:
            place = directory / "unbroken"
            place.mkdir()
            self._plain[build] = self.watch(build, None, place)
        return self._plain[build] == Seen()


@dataclass(frozen=True, slots=True)
class Suite:
    """Tests with a build, up to the first that fails. :ivar modules: those that are run. :ivar options: for pytest."""

    run: Commands
    name: str
    modules: Callable[[Break], Collection[str]]
    options: tuple[str, ...] = ()

    def watch(self, build: str, broken: Break, directory: Path) -> Seen:
        return self._tests(build, self.modules(broken), directory, directory / f"{self.name.replace(' ', '-')}.log")

    def is_sound(self, build: str, seen: Seen, directory: Path) -> bool:
        return self._tests(build, seen.tests, directory, directory / f"{self.name.replace(' ', '-')}-unbroken.log") == Seen()

    def _tests(self, build: str, tests: Collection[str], directory: Path, log: Path) -> Seen:
        status = self.run(
            [*_PYTEST, f"--spapr-qemu={build}", f"--spapr-artefacts={directory / 'artefacts'}", *self.options, *tests], log
        )
        if status == _QUIET:
            return Seen()
        failed = tuple(_FAILED.findall(log.read_text(encoding="utf-8")))
        if status != _NOTICED or not failed:
            return Seen(problem=_problem(self.name, status, log))
        return Seen(said=", ".join(failed), tests=failed)


def watchers(build: Callable[[str], QemuBuild], plain: str, minutes: float) -> tuple[Watcher, ...]:
    """Return all of them, the cheapest first. :param minutes: for each command of theirs."""
    run = commands(minutes)
    return (
        Probe(build, plain),
        Suite(run, "tests", lambda _: WITHOUT_GUEST, (f"--spapr-image={IMAGE}",)),
        Exploration(run),
        # Booted: a template of each broken build would take the room of those that are used again.
        Suite(run, "tests with a guest", lambda one: one.tests or WITH_GUEST, (f"--spapr-image={IMAGE}", "--spapr-start=boot")),
    )


def _problem(name: str, status: int | None, log: Path) -> str:
    lines = [line for line in log.read_text(encoding="utf-8").splitlines() if line.strip()]
    how = "took too long" if status is None else f"ended with status {status}"
    return f"{name} {how}: {lines[-1] if lines else 'it said nothing'}"
