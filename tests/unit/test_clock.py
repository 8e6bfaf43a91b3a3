"""The virtual clock, from QEMU's events."""

from __future__ import annotations

import pytest

from pytest_spapr.qemu.clock import virtual_seconds
from pytest_spapr.timeline import Lane, Timeline


class Scripted:
    """A timeline whose time a test sets."""

    def __init__(self) -> None:
        self.time = 0.0
        self.timeline = Timeline(clock=lambda: self.time)

    def event(self, name: str, at: float, lane: Lane = Lane.EVENT) -> None:
        self.time = at
        self.timeline.record(lane, name, {"event": name})

    def seconds(self, since: int, at: float) -> float:
        self.time = at
        return virtual_seconds(self.timeline, since)


@pytest.fixture
def machine() -> Scripted:
    return Scripted()


def test_it_stands_still_before_the_first_instruction(machine: Scripted) -> None:
    machine.event("DEVICE_DELETED", 1)
    assert machine.seconds(0, 5) == 0


def test_it_runs_with_the_machine(machine: Scripted) -> None:
    machine.event("RESUME", 1)
    assert machine.seconds(0, 5) == 4
    machine.event("DEVICE_DELETED", 6)
    assert machine.seconds(1, 8) == 2


def test_it_begins_where_the_cursor_is_also_when_nothing_came_since(machine: Scripted) -> None:
    machine.event("RESUME", 1)
    assert machine.seconds(machine.timeline.mark(), 5) == 0


@pytest.mark.parametrize("lane", [Lane.EVENT, Lane.QMP])
def test_pauses_do_not_count(machine: Scripted, lane: Lane) -> None:
    machine.event("RESUME", 1)
    machine.event("DEVICE_DELETED", 2)
    machine.event("STOP", 3, lane)
    assert machine.seconds(1, 10) == 1
    machine.event("RESUME", 11, lane)
    assert machine.seconds(1, 13) == 3


def test_what_was_paused_at_the_cursor_stays_so_until_it_is_told(machine: Scripted) -> None:
    machine.event("RESUME", 1)
    machine.event("STOP", 2)
    machine.event("DEVICE_DELETED", 4)
    assert machine.seconds(2, 6) == 0
    machine.event("RESUME", 7)
    assert machine.seconds(2, 9) == 2


def test_a_reply_is_no_event(machine: Scripted) -> None:
    machine.event("RESUME", 1)
    machine.time = 2
    machine.timeline.record(Lane.QMP, "<- {}", {"return": {}})
    machine.timeline.record(Lane.STEP, "STOP", {"event": "STOP"})
    assert machine.seconds(0, 3) == 2
