"""The pairs of a connector's state and what can happen to it there, which exploration is to reach."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection
from typing import Final, TypeAlias

from pytest_spapr.coverage.replay import Driven
from pytest_spapr.hotplug.drc_model import MACHINES, DrcClass, State, Transition, after

Pair: TypeAlias = tuple[DrcClass, State, Transition]

#: All that hw/ppc/spapr_drc.c knows.
PAIRS: Final[frozenset[Pair]] = frozenset(
    (drc_class, state, transition)
    for drc_class, machine in MACHINES.items()
    for state in machine
    for transition in machine[state]
)


def possible(features: Collection[str]) -> frozenset[Pair]:
    """Return those that a build with these features can come to."""
    return frozenset(pair for pair in PAIRS if after(*pair, features) is not None)


def reached(driven: Driven) -> frozenset[Pair]:
    """Return those that were driven."""
    return frozenset(pair for pair in PAIRS if driven.get(pair[0], {}).get(pair[1], {}).get(pair[2], 0))


def way(drc_class: DrcClass, start: State, goal: State, features: Collection[str]) -> tuple[Transition, ...] | None:
    """Return the shortest way of a connector from one state to another, without a reset, which is for all; None if there is none."""
    ways: deque[tuple[State, tuple[Transition, ...]]] = deque([(start, ())])
    seen = {start}
    while ways:
        here, before = ways.popleft()
        if here is goal:
            return before
        for transition in MACHINES[drc_class].get(here, {}):
            there = after(drc_class, here, transition, features)
            if there is not None and there not in seen and transition is not Transition.RESET:
                seen.add(there)
                ways.append((there, (*before, transition)))
    return None
