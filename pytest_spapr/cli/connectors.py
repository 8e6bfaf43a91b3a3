"""The tables of ``spapr coverage --drc``."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

from pytest_spapr.coverage.connectors import read, total
from pytest_spapr.coverage.replay import Driven
from pytest_spapr.errors import ConfigError
from pytest_spapr.hotplug.drc_model import MACHINES, DrcClass, Machine, State, Transition

_REACHED, _MISSED = 0, 1
_NAMES = max(map(len, State)) + 2
_KNOWN = sum(len(table) for machine in MACHINES.values() for table in machine.values())


def show(directory: Path, *, floor: int | None, missing: bool, as_json: bool) -> int:
    """Print what the runs in and below a directory drove the connectors through; return the exit status.

    :raises ConfigError: no run left its record there, or one is damaged; the floor is above all that is known.
    """
    if floor is not None and floor > _KNOWN:
        raise ConfigError(f"--floor={floor} can never be reached: {_KNOWN} pairs of state and transition are known.")
    runs = read(directory)
    driven = total(runs)
    counts = {drc_class: _counted(driven.get(drc_class, {}), machine) for drc_class, machine in MACHINES.items()}
    reached = sum(count > 0 for states in counts.values() for table in states.values() for count in table.values())
    unknown = list(_unknown(driven))
    if as_json:
        tested = [{"record": str(run.path), "tested": run.tested} for run in runs]
        print(json.dumps({"runs": tested, "reached": reached, "known": _KNOWN, "pairs": counts, "unknown": unknown}, indent=2))
    else:
        for run in runs:
            print(f"{run.path}: {run.tested}")
        for drc_class, states in counts.items():
            lines = _missing(states) if missing else _table(states)
            print("\n".join(("", _title(drc_class, states), *lines)))
        print(f"\n{reached} of {_KNOWN} pairs of state and transition")
        for line in unknown:
            print(f"not known to hw/ppc/spapr_drc.c, as we know it: {line}")
    return _REACHED if floor is None or reached >= floor else _MISSED


def _counted(driven: Mapping[str, Mapping[str, int]], machine: Machine) -> dict[State, dict[Transition, int]]:
    """Return how often each pair that is known was driven."""
    return {
        state: {transition: driven.get(state, {}).get(transition, 0) for transition in Transition if transition in table}
        for state, table in machine.items()
    }


def _unknown(driven: Driven) -> Iterator[str]:
    for drc_class, states in driven.items():
        machine = MACHINES[DrcClass(drc_class)] if drc_class in set(DrcClass) else {}
        for state, table in states.items():
            known = machine[State(state)] if state in set(machine) else {}
            yield from (f"{drc_class}, {state}: {name}, {count} times" for name, count in table.items() if name not in set(known))


def _title(drc_class: DrcClass, states: Mapping[State, Mapping[Transition, int]]) -> str:
    pairs = [
        (count > 0, MACHINES[drc_class][state][name] is not state)
        for state, table in states.items()
        for name, count in table.items()
    ]
    moving = [driven for driven, moves in pairs if moves]
    reached = sum(driven for driven, _ in pairs)
    return f"{drc_class}: {reached} of {len(pairs)} pairs, {sum(moving)} of the {len(moving)} that change the state"


def _table(states: Mapping[State, Mapping[Transition, int]]) -> Iterator[str]:
    columns = [transition for transition in Transition if any(transition in table for table in states.values())]
    yield " " * _NAMES + "".join(f"  {name:>8}" for name in columns)
    for state in State:
        if (table := states.get(state)) is not None:
            cells = ("" if name not in table else str(table[name] or "-") for name in columns)
            row = f"  {state:<{_NAMES - 2}}" + "".join(
                f"  {cell:>{max(8, len(name))}}" for cell, name in zip(cells, columns, strict=True)
            )
            yield row.rstrip()


def _missing(states: Mapping[State, Mapping[Transition, int]]) -> Iterator[str]:
    for state in State:
        if names := [name for name, count in states.get(state, {}).items() if not count]:
            yield f"  {state:<{_NAMES - 2}}  {', '.join(names)}"
