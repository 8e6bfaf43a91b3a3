"""Rounds of histories: hypothesis makes them, what breaks is made small, and what is known is counted."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

from pytest_spapr.coverage.connectors import merge
from pytest_spapr.coverage.replay import Driven
from pytest_spapr.deadline import Deadline
from pytest_spapr.explore.history import Play, Violated, Violation, contains
from pytest_spapr.explore.known import Avoid
from pytest_spapr.explore.pairs import Pair
from pytest_spapr.explore.shrink import Shrunk, shrink
from pytest_spapr.explore.steps import Step

if TYPE_CHECKING:
    from hypothesis.stateful import RuleBasedStateMachine

#: Rules of one history.
_RULES: Final = 40
#: Seconds for making one violation small, where nobody says otherwise.
SHRINK_SECONDS: Final = 300.0
#: How often a history of an earlier search is played.
_AGAIN: Final = 3


class Source(Protocol):
    """Where rules get their histories.

    :ivar avoid: what they are to leave out. :ivar wanted: pairs that are to be reached rather than others.
    """

    avoid: frozenset[Avoid]
    wanted: frozenset[Pair]

    def begin(self) -> Any:
        """Return a history on a fresh machine, a ``Play`` of the kind that the rules are for."""

    def end(self) -> None:
        """End it, sound or not."""


class Scene(Protocol):
    """A fresh machine with the history that is played on it. :ivar play: it."""

    @property
    def play(self) -> Play: ...

    def driven(self) -> Driven:
        """Return what the machine's connectors went through, as QEMU's own traces say."""

    def write(self, jsonl: Path, text: Path) -> None:
        """Write down all that was seen, in order."""

    def close(self) -> None:
        """End the machine."""


class Ground(Protocol):
    """Where histories are played."""

    def scene(self) -> Scene:
        """Return a fresh machine, with an empty history."""

    def rules(self, source: Source) -> type[RuleBasedStateMachine]:
        """Return the rules that make the histories of a source."""

    def known(self, violation: Violation) -> tuple[str, Avoid] | None:
        """Return the known defect that a violation is, and what is to be left out then."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Order:
    """A round to be played.

    :ivar number: of it; with the seed it makes the round's own. :ivar examples: how many histories.
    :ivar avoid: what they leave out. :ivar wanted: what they should rather reach.
    :ivar found: violations that are no news: steps that would lead to them once more are left out.
    :ivar steps: a history of an earlier search, to be played instead; it has no step where a machine is broken by itself.
    :ivar shrink: seconds for making what is found small.
    """

    seed: int
    number: int
    examples: int
    avoid: frozenset[Avoid] = frozenset()
    wanted: frozenset[Pair] = frozenset()
    found: tuple[Violation, ...] = ()
    steps: tuple[Step, ...] | None = None
    shrink: float = SHRINK_SECONDS

    def __str__(self) -> str:
        return f"round {self.number}"


@dataclass(slots=True)
class Outcome:
    """What a round came to. :ivar defects: known ones that were met. :ivar again: violations that were no news. :ivar avoid: more of it."""

    order: Order
    histories: int = 0
    steps: int = 0
    seconds: float = 0.0
    driven: Driven = field(default_factory=dict)
    defects: Counter[str] = field(default_factory=Counter)
    again: Counter[str] = field(default_factory=Counter)
    avoid: set[Avoid] = field(default_factory=set)
    finding: Shrunk | None = None


def play_round(order: Order, ground: Ground) -> Outcome:
    """Play a round and return what it came to. It ends early at a violation that is news, which is made small.

    Equal orders give equal histories, as far as QEMU does the same.
    """
    if order.steps is not None:
        return _play_again(order, order.steps, ground)
    # Here, so that whoever only reads what was found needs no hypothesis.
    from hypothesis import HealthCheck, Phase, seed, settings
    from hypothesis.stateful import run_state_machine_as_test

    began = time.monotonic()
    round_ = _Round(order, ground)
    machine = seed(random.Random(f"{order.seed} {order.number}").getrandbits(64))(ground.rules(round_))  # noqa: S311 - no secret
    chosen = settings(
        max_examples=order.examples,
        stateful_step_count=_RULES,
        deadline=None,
        database=None,
        phases=(Phase.generate,),
        suppress_health_check=list(HealthCheck),
        print_blob=False,
    )
    try:
        # It plays what broke once more, which may go well then: what was seen once stands in the round.
        run_state_machine_as_test(machine, settings=chosen)
    except Exception:  # hypothesis tells it in many ways; what it is stands in the round
        if round_.news is None:
            raise
    outcome = round_.outcome
    if round_.news is not None:
        outcome.finding = shrink(round_.news, lambda steps: play(steps, ground), Deadline(order.shrink))
    outcome.seconds = time.monotonic() - began
    return outcome


def _play_again(order: Order, steps: tuple[Step, ...], ground: Ground) -> Outcome:
    """Play a history of an earlier search. What breaks is told, unless it is known by now."""
    began = time.monotonic()
    outcome = Outcome(order)
    broken = [found for _ in range(_AGAIN) if (found := play(steps, ground)) is not None]
    outcome.histories, outcome.steps = _AGAIN, _AGAIN * len(steps)
    if broken and (known := ground.known(broken[0])) is not None:
        outcome.defects[known[0]] += len(broken)
    elif broken and not any(found.explains(broken[0]) for found in order.found):
        outcome.finding = Shrunk(broken[0], len(broken), _AGAIN, _AGAIN)
    outcome.seconds = time.monotonic() - began
    return outcome


def play(steps: Iterable[Step], ground: Ground, record: tuple[Path, Path] | None = None) -> Violation | None:
    """Play a history on a fresh machine, to its end, and return what broke; None if nothing did.

    :param record: files for its timeline, as JSON lines and as text.
    """
    scene = ground.scene()
    try:
        for step in steps:
            scene.play.do(step)
        scene.play.finish()
    except Violated as violated:
        return violated.violation
    finally:
        if record is not None:
            scene.write(*record)
        scene.close()
    return None


class _Round:
    """The source of a round's histories, which watches them. :ivar news: the violation that ended it, if one did."""

    def __init__(self, order: Order, ground: Ground) -> None:
        self.avoid = order.avoid
        self.wanted = order.wanted
        self.outcome = Outcome(order)
        self.news: Violation | None = None
        self._ground = ground
        self._scene: Scene | None = None

    def begin(self) -> Any:
        if self.news is not None:
            # hypothesis would play it again, to be sure of it.
            raise Violated(self.news)
        self._scene = self._ground.scene()
        self._scene.play.watcher = self
        return self._scene.play

    def end(self) -> None:
        scene = self._scene
        assert scene is not None
        self.outcome.histories += 1
        try:
            if self.news is None:
                scene.play.finish()
        finally:
            self.outcome.steps += len(scene.play.done)
            merge(self.outcome.driven, scene.driven())
            scene.close()

    def leaves_out(self, shape: tuple[str, ...]) -> bool:
        ends = (found.shape for found in self.outcome.order.found if found.shape[-1:] == shape[-1:])
        return any(contains(shape, whole) for whole in ends)

    def met(self, violation: Violation) -> None:
        if (known := self._ground.known(violation)) is not None:
            defect, avoid = known
            self.outcome.defects[defect] += 1
            self.outcome.avoid.add(avoid)
        elif any(found.explains(violation) for found in self.outcome.order.found):
            self.outcome.again[violation.signature] += 1
        else:
            self.news = violation
            raise Violated(violation)
