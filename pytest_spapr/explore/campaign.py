"""A whole exploration: which rounds are played, for how long, and what they came to in all."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from pytest_spapr.coverage.connectors import merge
from pytest_spapr.coverage.replay import Driven
from pytest_spapr.deadline import Deadline
from pytest_spapr.errors import ConfigError
from pytest_spapr.explore import findings
from pytest_spapr.explore.history import Violation
from pytest_spapr.explore.known import Avoid
from pytest_spapr.explore.pairs import possible, reached
from pytest_spapr.explore.search import SHRINK_SECONDS, Order, Outcome
from pytest_spapr.explore.shrink import Shrunk


@dataclass(slots=True)
class Campaign:
    """What is explored, and what was seen up to now.

    :ivar seed: of all of it. :ivar deadline: no round begins after it. :ivar examples: histories, at most; None for any number.
    :ivar first: whether no round begins after the first violation, either. :ivar shrink: seconds for making one small.
    :ivar guided: whether what was not reached yet is preferred. :ivar features: of the build. :ivar store: histories of earlier
        searches, played first; what is found goes there. :ivar round: how many histories are one; what is learned in it counts from the
        next one on. :ivar skipped: what is wrong with histories of earlier searches that cannot be played.
    """

    seed: int
    deadline: Deadline
    examples: int | None
    guided: bool
    features: frozenset[str]
    store: Path
    round: int = 20
    first: bool = False
    shrink: float = SHRINK_SECONDS
    histories: int = 0
    steps: int = 0
    driven: Driven = field(default_factory=dict)
    defects: Counter[str] = field(default_factory=Counter)
    again: Counter[str] = field(default_factory=Counter)
    found: list[Shrunk] = field(default_factory=list)
    avoid: set[Avoid] = field(default_factory=set)
    given: int = 0
    skipped: list[str] = field(default_factory=list)

    def orders(self) -> Iterator[Order]:
        """Yield rounds to be played, as long as there are to be more; each is made of all that is known by then."""
        for path in findings.stored(self.store):
            if self._ended:
                return
            try:
                steps, _ = findings.load(path)
            except ConfigError as error:
                self.skipped.append(str(error))
                continue
            yield Order(seed=self.seed, number=0, examples=0, steps=steps, found=self._violations())
        number = 0
        while not self._ended and not self.deadline.expired and (self.examples is None or self.given < self.examples):
            number += 1
            examples = self.round if self.examples is None else min(self.round, self.examples - self.given)
            self.given += examples
            yield Order(
                seed=self.seed,
                number=number,
                examples=examples,
                avoid=frozenset(self.avoid),
                wanted=possible(self.features) - reached(self.driven) if self.guided else frozenset(),
                found=self._violations(),
                shrink=self.shrink,
            )

    @property
    def _ended(self) -> bool:
        return self.first and bool(self.found)

    def take(self, outcome: Outcome) -> Shrunk | None:
        """Add what a round came to; return its finding if it is a new one."""
        self.histories += outcome.histories
        self.steps += outcome.steps
        merge(self.driven, outcome.driven)
        self.defects.update(outcome.defects)
        self.again.update(outcome.again)
        self.avoid.update(outcome.avoid)
        found = outcome.finding
        if found is None:
            return None
        signature = found.violation.signature
        if any(one.explains(found.violation) for one in self._violations()):
            # The other worker was at it, too.
            self.again[signature] += 1
            return None
        self.found.append(found)
        findings.save(findings.place(self.store, found.violation), found.violation.steps, signature)
        return found

    def _violations(self) -> tuple[Violation, ...]:
        return tuple(one.violation for one in self.found)

    def in_words(self, seconds: float) -> str:
        """Return what was done up to now. :param seconds: that it took."""
        rate = self.steps / seconds * 60 if seconds else 0.0
        pairs = possible(self.features)
        return (
            f"{self.histories} histories, {self.steps} steps, {rate:.0f} a minute, {len(reached(self.driven) & pairs)} of {len(pairs)} "
            f"DRC transitions, {_several(self.found, 'violation')}"
        )


def _several(things: Collection[object], name: str) -> str:
    return f"{len(things)} {name}" + ("" if len(things) == 1 else "s")
