"""Looks for the first bad commit: both ends are asked first, then git bisects between them."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from pytest_spapr.avocado.kept import Kept, new_scratch
from pytest_spapr.bisect.asking import Ruling, State, runs_to_trust
from pytest_spapr.bisect.checkout import Checkout, Range, Repository
from pytest_spapr.bisect.journal import Broken, Reader, Told
from pytest_spapr.bisect.step import Plan
from pytest_spapr.errors import ConfigError, SpaprError
from pytest_spapr.progress import Progress

_TELL_SECONDS: Final = 0.3
#: Between SIGTERM and SIGKILL for what a step runs, when it is given up.
_END_SECONDS: Final = 20.0
_LOG: Final = "bisect.txt"
#: git bisect run: the first bad commit is found, or only commits that cannot be told are left.
_ENDED: Final = (0, 2)


@dataclass(frozen=True, slots=True)
class Found:
    """What a search came to. :ivar suspects: one of them is the first bad commit; the last is bad. :ivar told: of all steps, in order."""

    suspects: tuple[str, ...]
    told: tuple[Told, ...]

    @property
    def first_bad(self) -> str | None:
        """The first bad commit, where it is certain."""
        return self.suspects[0] if len(self.suspects) == 1 else None


class Search:
    """A search in a working tree of our own.

    :param tell: is told of each step. :param progress: how far they are.
    """

    def __init__(
        self, repository: Repository, checkout: Checkout, plan: Plan, progress: Progress, tell: Callable[[Told], None]
    ) -> None:
        self._repository = repository
        self._checkout = checkout
        self._plan = plan
        self._progress = progress
        self._tell = tell
        self._told: list[Told] = []

    def find(self, which: Range) -> Found:
        """Return the first bad commit; as many steps as its number's logarithm to base 2, and two.

        An error, Ctrl-C and SIGTERM end all that runs, and the bisection.

        :raises ConfigError: the test does not fail at the bad commit, fails at the good one, or cannot tell.
        :raises SpaprError: git, or a step, could do nothing.
        """
        with self._in_order(), self._journal() as journal:
            plan = self._bad_end(which.bad, journal)
            self._good_end(which.good, plan, journal)
            if (count := self._repository.between(which)) == 1:
                return Found((which.bad,), tuple(self._told))
            self._checkout.start(which)
            self._progress.phase(f"{count} commits to search, about {max(count - 1, 1).bit_length()} steps")
            status = self._run(self._checkout.run_command(_command(plan)), journal)
            if status not in _ENDED:
                raise SpaprError(f"`git bisect run` ended with status {status}: {self._last_words()}")
            return Found(tuple(self._checkout.suspects()), tuple(self._told))

    def _bad_end(self, commit: str, journal: Reader) -> Plan:
        """Ask the bad commit; return the plan for the other steps, which depends on how often it fails there."""
        ruling = self._end(commit, self._plan, journal)
        if ruling.state is State.GOOD:
            raise ConfigError(f"the test does not fail at --bad ({self._repository.subject(commit)}): it {ruling.why}.")
        if ruling.flaky:
            runs = max(self._plan.runs, runs_to_trust(ruling.failed, ruling.runs))
            self._progress.phase(f"the test is flaky at --bad: a commit is good after {runs} runs that pass")
            return replace(self._plan, runs=runs, intermittent=True)
        if ruling.state is State.UNKNOWN:
            raise ConfigError(
                f"nothing can be told of --bad ({self._repository.subject(commit)}): {ruling.why}. See {self._plan.output}."
            )
        return self._plan

    def _good_end(self, commit: str, plan: Plan, journal: Reader) -> None:
        ruling = self._end(commit, plan, journal)
        where = f"--good ({self._repository.subject(commit)})"
        if ruling.flaky or (ruling.state is State.BAD and plan.intermittent):
            raise ConfigError(
                f"the test fails now and then at {where} already: it {ruling.why}. Give a commit where it never does."
            )
        if ruling.state is State.BAD:
            raise ConfigError(f"the test fails at {where} already: it {ruling.why}. Give an older commit, or look at the test.")
        if ruling.state is State.UNKNOWN:
            raise ConfigError(f"nothing can be told of {where}: {ruling.why}. See {self._plan.output}.")

    def _end(self, commit: str, plan: Plan, journal: Reader) -> Ruling:
        self._checkout.checkout(commit)
        status = self._run(_command(plan), journal)
        told = self._told[-1] if self._told else None
        if told is None or told.commit != commit:
            raise SpaprError(f"the step of {commit[:12]} told nothing (exit status {status}): {self._last_words()}")
        return told.ruling

    def _run(self, command: Sequence[str], journal: Reader) -> int:
        """Run a command to its end and hand on what its steps tell; return its status."""
        broken: Broken | None = None
        with Kept(command, new_scratch(), Path(self._plan.output) / _LOG, _END_SECONDS) as kept:
            ended = False
            while not ended:
                ended = kept.ended(_TELL_SECONDS)
                for news in journal.news(self._progress):
                    if isinstance(news, Broken):
                        broken = news
                    else:
                        self._told.append(news)
                        self._tell(news)
            status = kept.status()
        if broken is not None:
            raise SpaprError(broken.message)
        return status

    @contextmanager
    def _in_order(self) -> Iterator[None]:
        self._checkout.prepare()
        try:
            yield
        finally:
            self._checkout.reset()

    @contextmanager
    def _journal(self) -> Iterator[Reader]:
        journal = Reader(self._plan.journal)
        try:
            yield journal
        finally:
            journal.close()

    def _last_words(self) -> str:
        lines = (Path(self._plan.output) / _LOG).read_text(errors="replace").strip().splitlines()
        return " | ".join(lines[-3:]) or "it said nothing"


def _command(plan: Plan) -> list[str]:
    return [sys.executable, "-m", "pytest_spapr.bisect.step", str(plan.write())]


def flaky_commits(found: Found) -> list[Told]:
    """Return what was told of commits where the test did not say the same each time."""
    return [told for told in found.told if told.ruling.flaky]


def untold_commits(found: Found) -> list[Told]:
    """Return what was told of the suspects that nothing could be told of."""
    return [told for told in found.told if told.commit in found.suspects and told.ruling.state is State.UNKNOWN]
