"""How each scenario of the checklist stands."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from pytest_spapr.coverage.checklist import Entry, read_checklist
from pytest_spapr.coverage.claims import read_claims
from pytest_spapr.errors import ConfigError


class State(StrEnum):
    """How a scenario stands. What is ``PARTLY`` covered is open too."""

    COVERED = "covered"
    PARTLY = "partly"
    OPEN = "open"
    NOT_HERE = "not here"

    @property
    def open(self) -> bool:
        return self in (State.PARTLY, State.OPEN)


@dataclass(frozen=True, slots=True)
class Scenario:
    """An entry of the checklist and the tests that cover it, as pytest names them."""

    entry: Entry
    tests: tuple[str, ...]

    @property
    def state(self) -> State:
        if self.entry.reason is not None:
            return State.NOT_HERE
        if not self.tests:
            return State.OPEN
        return State.COVERED if self.entry.left is None else State.PARTLY

    def described(self) -> dict[str, Any]:
        """Return it as plain data, for JSON."""
        entry = self.entry
        said = {"reason": entry.reason, "exempt": entry.exempt, "left": entry.left}
        return {
            "id": entry.id,
            "theme": entry.theme,
            "title": entry.title,
            "state": str(self.state),
            **{key: value for key, value in said.items() if value is not None},
            "tests": list(self.tests),
        }


def read_scenarios(directory: Path) -> list[Scenario]:
    """Return how each scenario of the checklist stands with the tests below a directory, in the checklist's order; 0.5 s.

    :raises ConfigError: there is no checklist; it and the tests contradict each other.
    """
    checklist = read_checklist(directory)
    tests: dict[str, list[str]] = {name: [] for name in checklist}
    wrong: list[str] = []
    for claim in read_claims(directory, checklist):
        for name in claim.ids:
            tests[name].append(claim.test)
            if (reason := checklist[name].reason) is not None:
                wrong.append(f"{claim.where}: {claim.test} covers {name}, which cannot exist: {reason}")
    wrong.extend(
        f"{name}: something of it is said to be left, and no test names it: leave out what is left"
        for name, entry in checklist.items()
        if entry.left is not None and not tests[name]
    )
    if wrong:
        raise ConfigError("\n".join(("the checklist and the tests contradict each other:", *wrong)))
    return [Scenario(entry, tuple(tests[name])) for name, entry in checklist.items()]


def counts(scenarios: Sequence[Scenario]) -> dict[State, int]:
    """Return how many scenarios stand how."""
    found = Counter(one.state for one in scenarios)
    return {state: found[state] for state in State}
