"""Makes a history that breaks as short as it can be: by leaving out steps and by making simpler ones of them, each try on a fresh machine.

hypothesis has a shrinker of its own, but gives up on what does not break each time. Much that kills QEMU is of that kind.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import combinations, takewhile
from typing import Any, Final, TypeVar

from pytest_spapr.deadline import Deadline
from pytest_spapr.explore.history import Violation
from pytest_spapr.explore.steps import Call, Command, Step

#: How often a history is played to learn how often it breaks: at first, and the one that is left.
_FIRST: Final = 3
_TRIES: Final = 5
#: A shorter history is held to be sound if it would have broken with this probability and did not.
_SURE: Final = 0.95
_MOST_TRIES: Final = 8
#: Steps of a history that is short enough for each pair of them to be tried.
_FEW: Final = 12

C = TypeVar("C")

#: Plays a history and returns what broke, or None.
Play = Callable[[tuple[Step, ...]], Violation | None]


@dataclass(frozen=True, slots=True)
class Shrunk:
    """A violation by a history that cannot be made shorter.

    :ivar broke: :ivar played: how often that history broke in this way, of how many times at the end. :ivar plays: all that it took.
    """

    violation: Violation
    broke: int
    played: int
    plays: int

    @property
    def rate(self) -> str:
        return "each time" if self.broke == self.played else f"{self.broke} of {self.played} times"


def shrink(violation: Violation, play: Play, deadline: Deadline) -> Shrunk:
    """Return the same violation by a history from which no step can be left out, as far as the time allows.

    :param deadline: for all of it; what has been reached by then counts.
    """
    return _Shrinker(violation, play, deadline).run()


class _Shrinker:
    def __init__(self, violation: Violation, play: Play, deadline: Deadline) -> None:
        self._best = violation
        self._signature = violation.signature
        self._play = play
        self._deadline = deadline
        self._plays = 0
        self._tries = 1

    def run(self) -> Shrunk:
        broke, played = self._count(_FIRST)
        if broke < played:
            self._tries = min(_MOST_TRIES, math.ceil(math.log(1 - _SURE) / math.log(1 - max(broke, 0.5) / played)))
        while not self._deadline.expired and (self._leave_out() or self._leave_out_two() or self._simplify()):
            pass
        return Shrunk(self._best, *self._count(_TRIES), self._plays)

    def _count(self, tries: int) -> tuple[int, int]:
        """Return how often the best history breaks, and of how many times: all, or fewer where the time is up, but at least one."""
        # A guest that hangs has each play wait for minutes.
        plays = (number for number in range(tries) if number == 0 or not self._deadline.expired)
        broke = [self._breaks(self._best.steps) is not None for _ in plays]
        return sum(broke), len(broke)

    def _leave_out(self) -> bool:
        """Leave out as many steps as possible, in ever smaller pieces from the end on; return whether any could be."""
        before = len(self._best.steps)
        size = max(before // 2, 1)
        while size:
            end = len(self._best.steps)
            while end > 0 and not self._deadline.expired:
                steps = self._best.steps
                if not self._improve(steps[: max(end - size, 0)] + steps[end:]):
                    end -= size
                else:
                    end = min(end - size, len(self._best.steps))
            size //= 2
        return len(self._best.steps) < before

    def _leave_out_two(self) -> bool:
        """Leave out any two steps of a short history: two resets, say, of which each makes up for the other."""
        steps = self._best.steps
        if len(steps) > _FEW:
            return False
        pairs = combinations(range(len(steps)), 2)
        return any(
            self._improve(tuple(step for place, step in enumerate(steps) if place not in pair)) for pair in self._in_time(pairs)
        )

    def _in_time(self, candidates: Iterable[C]) -> Iterator[C]:
        return takewhile(lambda _: not self._deadline.expired, candidates)

    def _simplify(self) -> bool:
        """Replace a step by a simpler one; return whether any could be."""
        for place, step in enumerate(self._best.steps):
            for simpler in _simpler(step):
                steps = self._best.steps
                if self._deadline.expired or self._improve((*steps[:place], simpler, *steps[place + 1 :])):
                    return not self._deadline.expired
        return False

    def _improve(self, steps: tuple[Step, ...]) -> bool:
        """Return whether a history breaks in the same way; then it is the best."""
        for _ in range(self._tries):
            if (found := self._breaks(steps)) is not None:
                self._best = found
                return True
        return False

    def _breaks(self, steps: tuple[Step, ...]) -> Violation | None:
        self._plays += 1
        found = self._play(steps)
        return found if found is not None and found.signature == self._signature else None


def _simpler(step: Step) -> Iterator[Step]:
    """Yield what may do as well as a step, and is easier to read."""
    match step:
        case Command(_, arguments):
            yield from (replace(step, arguments=given) for given in _simpler_arguments(arguments))
        case Call(_, _, part) if part:
            yield replace(step, part=0)


def _simpler_arguments(given: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    for name, least in (("core-id", 1), ("index", 1), ("chassis_nr", 1), ("qom-type", "memory-backend-ram")):
        if name in given and given[name] != least:
            yield {**given, name: least}
    if "size" in given:
        yield from ({**given, "size": size} for size in range(256 << 20, int(given["size"]), 256 << 20))
    if "addr" in given:
        yield {name: value for name, value in given.items() if name not in ("addr", "multifunction")}
