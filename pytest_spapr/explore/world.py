"""What a history is played on, and what is seen of each step."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from pytest_spapr.coverage.replay import Driven
from pytest_spapr.explore.model import Facts
from pytest_spapr.explore.steps import Step
from pytest_spapr.hotplug.drc_model import State


@dataclass(frozen=True, kw_only=True, slots=True)
class Seen:
    """What came of one step.

    :ivar refusal: QEMU's words if it refused the command. :ivar status: of an RTAS call. :ivar count: of the events that the guest took.
    :ivar attached: the connectors that got a device. :ivar events: those about unplugs, in order, with the device's id.
    :ivar end: how QEMU ended, or that it does not answer any more; None while it lives.
    :ivar options: those that the other QEMU of a migration was started with.
    """

    refusal: str | None = None
    status: int | None = None
    count: int | None = None
    attached: tuple[int, ...] = ()
    events: tuple[tuple[str, str], ...] = ()
    end: str | None = None
    options: tuple[str, ...] = ()


class WorldEnded(Exception):
    """A machine ended, or answers no more, when it was looked at. The text says how."""


@contextmanager
def state_file(wanted: bool) -> Iterator[Path | None]:
    """Yield a path for a machine's stored state, of which nothing stays, or None if none is wanted."""
    if not wanted:
        yield None
        return
    with tempfile.TemporaryDirectory(prefix="spapr-") as directory:
        yield Path(directory) / "state"


class World(Protocol):
    """A fresh machine for one history. :ivar facts: what the model must know of it.

    :ivar drivers: its own names for device models, by those that histories have, where it differs: two builds can share a history.
    """

    facts: Facts
    drivers: Mapping[str, str]

    def do(self, step: Step, index: int | None) -> Seen:
        """Do a step and return what came of it up to now. :param index: the connector of an RTAS call."""

    def settle(self) -> Seen:
        """Return what was still on its way, when all of it is there."""

    def states(self) -> Mapping[int, State]:
        """Return the state of every connector that has a device, but for those that are configured. :raises WorldEnded: see there."""

    def inventory(self) -> frozenset[str]:
        """Return the ids of all devices that were plugged and have not gone. :raises WorldEnded: see there."""

    def driven(self) -> Driven:
        """Return what the connectors went through, as QEMU's own traces say."""

    def write(self, jsonl: Path, text: Path) -> None:
        """Write down all that was seen, in order."""

    def close(self) -> None:
        """End the machine."""
