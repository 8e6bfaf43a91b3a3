"""Avocado's runners for the suite: ``spapr-pytest`` runs a test module in a cell, ``spapr-supply`` gets what a cell needs.

Avocado starts them as processes of their own, ends them by SIGTERM and, if they do not end, SIGKILL. Both leave nothing behind then, see
``keeper.py``; and they end when Avocado itself is killed.
"""

from __future__ import annotations

import ctypes
import json
import math
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, Final

from avocado.core.nrunner.app import BaseRunnerApp
from avocado.core.nrunner.runnable import Runnable
from avocado.core.nrunner.runner import BaseRunner

from pytest_spapr.avocado import OUR_SPAWNER, container
from pytest_spapr.avocado.cell import variant_cell
from pytest_spapr.avocado.container import Container
from pytest_spapr.avocado.kept import KeeperDied, Kept, new_scratch
from pytest_spapr.avocado.verdict import Verdict, judge, read_junit
from pytest_spapr.deadline import Deadline
from pytest_spapr.errors import ConfigError
from pytest_spapr.qemu.process import exit_in_words

Message = dict[str, Any]

#: The kinds of runnables, as Avocado calls them.
PYTEST: Final = "spapr-pytest"
SUPPLY: Final = "spapr-supply"

_PR_SET_PDEATHSIG: Final = 1
_TELL_SECONDS: Final = 0.5
#: Avocado kills a runner so many seconds after SIGTERM.
_HARD: Final = "runner.task.interval.from_soft_to_hard_termination"
_SPAWNER: Final = "run.spawner"
_TIMEOUT: Final = "task.timeout.running"
#: What a command gets of that time; the rest is for its keeper.
_SHARE: Final = 0.8
_JUNIT: Final = "junit.xml"
#: What Avocado calls the file of a task's output.
_LOG: Final = "stdout"


class _KeptRunner(BaseRunner):  # type: ignore[misc]  # avocado is not typed
    """Runs a command under a keeper, and tells Avocado how it goes."""

    CONFIGURATION_USED: Final = [_HARD, _SPAWNER, _TIMEOUT, container.IMAGE, container.MOUNTS]

    def run(self, runnable: Runnable) -> Iterator[Message]:
        """Run it, as Avocado wants it: yield its messages."""
        yield self.prepare_status("started")
        try:
            words = self._words(runnable)
        except ConfigError as error:
            yield self._finished(Verdict("error", str(error)))
            return
        scratch = new_scratch()
        # Avocado does not see the files of another host: they are sent.
        sends = runnable.config[_SPAWNER] == "remote"
        place = scratch / "sent" if sends else Path(runnable.output_dir).absolute()
        place.mkdir(exist_ok=True)
        command = [sys.executable, "-m", *words, *self._places(place, scratch)]
        seconds = float(runnable.config[_HARD]) * _SHARE
        with Kept(command, scratch, place / _LOG, seconds, self._container(runnable)) as kept, _given_up(kept) as given_up:
            # Avocado's remote spawner cannot end what it began.
            deadline = Deadline(float(runnable.config[_TIMEOUT] or math.inf) if sends else math.inf)
            while not kept.ended(_TELL_SECONDS):
                if deadline.expired and not given_up:
                    given_up.append(0)
                    kept.give_up()
                yield self.prepare_status("running")
            try:
                status = kept.status()
            except KeeperDied as error:
                yield self._finished(Verdict("error", str(error)))
                return
            yield from self._messages(place, sends=sends)
            if not given_up:
                yield from self._verdict(place, status)
                return
            if runnable.config[_SPAWNER] == OUR_SPAWNER:
                # It says itself why: too late, interrupted, or somebody else's signal.
                sys.exit(128 + signal.SIGTERM)
            yield self._finished(Verdict("interrupted", "given up: it took too long, or got SIGTERM"), status)

    def _messages(self, place: Path, *, sends: bool) -> Iterator[Message]:
        """Yield what is to be seen of the command: its output, and its files where Avocado cannot see them."""
        log = place / _LOG
        yield self.prepare_status("running", {"type": "stdout", "log": log.read_bytes(), "log_only": not sends})
        if sends:
            for file in sorted(place.rglob("*")):
                if file.is_file() and file != log:
                    name = str(file.relative_to(place))
                    yield self.prepare_status("running", {"type": "file", "path": name, "log": file.read_bytes()})

    def _finished(self, verdict: Verdict, status: int | None = None) -> Message:
        facts: Message = {"result": verdict.result}
        if verdict.reason:
            facts["fail_reason"] = verdict.reason
        if status is not None:
            facts["returncode"] = status
        message: Message = self.prepare_status("finished", facts)
        return message

    def _container(self, runnable: Runnable) -> Container | None:
        """Return what it is run in a container of, None for none."""
        return Container.of(runnable.config)

    def _words(self, runnable: Runnable) -> list[str]:
        """Return the Python module that is run and its arguments. :raises ConfigError: the runnable is not what it should be."""
        raise NotImplementedError

    def _places(self, place: Path, scratch: Path) -> list[str]:
        """Return more arguments: where files go that are kept, and those that are not."""
        raise NotImplementedError

    def _verdict(self, place: Path, status: int) -> Iterator[Message]:
        """Yield what the command came to; the last message says that it has finished."""
        raise NotImplementedError


class PytestRunner(_KeptRunner):
    """Runs a test module in a cell. Its result is that of its tests, see ``verdict.py``; its whiteboard has their numbers."""

    name = PYTEST
    description = "Runner for test modules of pytest-spapr in a cell of the matrix"

    def _words(self, runnable: Runnable) -> list[str]:
        cell = variant_cell(runnable.variant)
        # What was named and is missing is an error, what was not and is missing a failure: a cell without its machine is no cell.
        return ["pytest", *cell.arguments(), "--spapr-strict", "-p", "no:cacheprovider", runnable.uri]

    def _places(self, place: Path, scratch: Path) -> list[str]:
        return [f"--junitxml={place / _JUNIT}", f"--spapr-artefacts={place / 'artefacts'}", f"--basetemp={scratch / 'tmp'}"]

    def _verdict(self, place: Path, status: int) -> Iterator[Message]:
        tally = read_junit(place / _JUNIT)
        if tally is not None:
            yield self.prepare_status("running", {"type": "whiteboard", "log": json.dumps(tally.facts()).encode()})
        yield self._finished(judge(tally, status), status)


class SupplyRunner(_KeptRunner):
    """Gets the QEMU build or the guest image of cells, which is then in the cache."""

    name = SUPPLY
    description = "Runner that gets QEMU builds and guest images for pytest-spapr"

    def _container(self, runnable: Runnable) -> Container | None:
        # A container knows no mirror; but a QEMU of somebody's own may start there and nowhere else.
        return super()._container(runnable) if "/" in json.loads(runnable.kwargs["options"]).get("qemu", "") else None

    def _words(self, runnable: Runnable) -> list[str]:
        options = json.loads(runnable.kwargs["options"])
        return ["pytest_spapr.avocado.obtain", *(f"{name}={value}" for name, value in options.items())]

    def _places(self, *_: Path) -> list[str]:
        return []

    def _verdict(self, place: Path, status: int) -> Iterator[Message]:
        if not status:
            yield self._finished(Verdict("pass"), status)
            return
        said = (place / _LOG).read_text(encoding="utf-8", errors="replace").strip().splitlines()
        yield self._finished(Verdict("fail", said[-1] if said else exit_in_words(status)), status)


@contextmanager
def _given_up(kept: Kept) -> Iterator[list[int]]:
    """Have SIGTERM give the command up; yield the list of those that came. The generator then runs on, to the command's end."""
    came: list[int] = []

    def give_up(number: int, _frame: FrameType | None) -> None:
        came.append(number)
        kept.give_up()

    before = signal.signal(signal.SIGTERM, give_up)
    try:
        yield came
    finally:
        signal.signal(signal.SIGTERM, before)


class App(BaseRunnerApp):  # type: ignore[misc]  # avocado is not typed
    """The command line that Avocado expects of a runner."""

    PROG_NAME = "avocado-runner-spapr"
    PROG_DESCRIPTION = "Avocado's runners for the suite of pytest-spapr"
    RUNNABLE_KINDS_CAPABLE = (PYTEST, SUPPLY)


def main() -> None:
    """Be a runner: what Avocado starts for each task."""
    parent = os.getppid()
    # A job that was killed has nobody who waits for its tasks.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() == parent:
        App(print).run()


if __name__ == "__main__":
    main()
