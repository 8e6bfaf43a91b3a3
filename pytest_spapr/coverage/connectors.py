"""What runs drove QEMU's connectors through, on record: each run leaves a small file with its artefacts, and a reader adds them up."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from pytest_spapr.errors import ConfigError

if TYPE_CHECKING:
    from pytest_spapr.coverage.replay import Driven
    from pytest_spapr.hotplug.pseries import PseriesMachine

_FORMAT: Final = 1
_NAME: Final = "drc-coverage-{}.json"


@dataclass(frozen=True, slots=True)
class Run:
    """One run's record. :ivar tested: QEMU, kernel and accelerator, in words."""

    path: Path
    tested: str
    driven: Driven


def watch(machine: PseriesMachine) -> None:
    """Have QEMU trace resets from now on, which it is told not to at its start. What was plugged before was there from the start."""
    # This module is imported in every pytest run.
    from pytest_spapr.coverage.replay import WATCH

    def begin() -> None:
        machine.qmp.execute(*WATCH)

    begin()
    machine.at_move.append(begin)


def driven(machine: PseriesMachine) -> Driven:
    """Return what the connectors of a watched machine went through."""
    from pytest_spapr.coverage.replay import driven

    return driven(machine.timeline.since(), machine.build.features)


def merge(into: Driven, more: Driven) -> None:
    """Add one to the other."""
    for drc_class, states in more.items():
        for state, transitions in states.items():
            counts = into.setdefault(drc_class, {}).setdefault(state, {})
            for transition, count in transitions.items():
                counts[transition] = counts.get(transition, 0) + count


def write(directory: Path, found: Driven, tested: str) -> Path:
    """Write a run's record into a directory, beside those of other runs; return the file.

    :raises OSError: it cannot be written.
    """
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / _NAME.format(f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}")
    # Half a record would be one that a reader complains of.
    half = path.with_suffix(".half")
    half.write_text(json.dumps({"format": _FORMAT, "tested": tested, "drc": found}, indent=1) + "\n", encoding="utf-8")
    half.rename(path)
    return path


def read(directory: Path) -> list[Run]:
    """Return all records in a directory and below it.

    :raises ConfigError: there is none, or one is damaged.
    """
    if not directory.is_dir():
        raise ConfigError(f"{directory} is no directory: give the artefacts of runs with --spapr-coverage.")
    runs = [_read(path) for path in sorted(directory.rglob(_NAME.format("*")))]
    if not runs:
        raise ConfigError(f"no run left a record in or below {directory}: run the tests with --spapr-coverage.")
    return runs


def total(runs: Sequence[Run]) -> Driven:
    """Return what all runs together did."""
    found: Driven = {}
    for run in runs:
        merge(found, run.driven)
    return found


def _read(path: Path) -> Run:
    try:
        data: Any = json.loads(path.read_text(encoding="utf-8"))
        if data["format"] != _FORMAT:
            raise ValueError(f"its format is {data['format']}, expected {_FORMAT}")
        found = {
            str(drc_class): {
                str(state): {str(transition): int(count) for transition, count in transitions.items()}
                for state, transitions in states.items()
            }
            for drc_class, states in data["drc"].items()
        }
        return Run(path, str(data["tested"]), found)
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"{path} is no record of a run: {error or type(error).__name__}. Remove it and run the tests again."
        ) from error
