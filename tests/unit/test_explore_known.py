"""Exploration: which violations are a known defect, and of which build it is asked. What is the same by name only is news."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from pytest_spapr.explore.firmware import FirmwareGround
from pytest_spapr.explore.history import Twins, Violated, Violation
from pytest_spapr.explore.known import known_defect
from pytest_spapr.explore.search import play
from pytest_spapr.explore.steps import Call, Command, Move, Step
from pytest_spapr.explore.world import Seen
from pytest_spapr.hotplug.drc_model import Transition

from .explored import FACTS, Bug, FakeGround, FakeWorld, sound

CORE = Command("device_add", {"driver": FACTS.core_type, "id": "core1", "core-id": 1})
UNPLUG = Command("device_del", {"id": "core1"})
GIVE = [Call(Transition.ISOLATE, "core1"), Call(Transition.SET_UNUSABLE, "core1")]
RESET = Command("system_reset")
NOBODY = Command("device_del", {"id": "nobody"})


def card(number: int, addr: str, bus: str = "pci.0") -> Command:
    given = {"driver": "virtio-rng-pci", "id": f"pci{number}", "bus": bus, "addr": addr, "multifunction": True}
    return Command("device_add", given)


def dies_at_the_end(steps: Sequence[Step], end: str) -> Violation:
    """Return what is seen of a history by whose last step QEMU ends."""

    def dies(done: list[Step], seen: Seen) -> Seen:
        return replace(seen, end=end) if len(done) == len(steps) else seen

    found = play(steps, FakeGround(dies))
    assert found is not None
    assert found.steps == tuple(steps)
    return found


def named(violation: Violation, version: tuple[int, int, int] = (7, 2, 22)) -> str | None:
    build: Any = SimpleNamespace(version=version)
    known = known_defect(violation, build, "tcg")
    return known[0] if known else None


@pytest.mark.parametrize(
    ("steps", "known"),
    [
        ([card(1, "5.1"), card(2, "5.1")], True),
        ([card(1, "5.0"), card(2, "5.2")], False),
        ([card(1, "5.1"), card(2, "5.0"), card(3, "05.1")], True),
        # QEMU refuses function 0 of a slot that has one.
        ([card(1, "5.0"), card(2, "5.0")], False),
        # The place was given back, by a guest that had not taken the device yet.
        ([card(1, "5.1"), Command("device_del", {"id": "pci1"}), card(2, "5.1")], False),
        ([card(1, "5.1"), card(2, "5.2")], False),
        ([Command("device_add", {"driver": "pci-bridge", "id": "b", "bus": "pci.0", "addr": "5.0"}), card(2, "5.1", "b")], False),
    ],
)
def test_the_death_by_a_taken_function_needs_one_that_is_there(steps: list[Step], known: bool) -> None:
    assert (named(dies_at_the_end(steps, "QEMU was killed by SIGSEGV")) == "pci-function-taken") is known


@pytest.mark.parametrize(
    ("steps", "end", "known"),
    [
        ([CORE, UNPLUG, RESET], "QEMU was killed by SIGSEGV", "tcg-core-removal"),
        ([CORE, RESET, UNPLUG, *GIVE], "QEMU was killed by SIGBUS", "tcg-core-removal"),
        ([CORE, UNPLUG, RESET], "QEMU was killed by SIGABRT: malloc(): corrupted top size", "tcg-core-removal-heap"),
        # By whoever is short of memory.
        ([CORE, UNPLUG, RESET], "QEMU was killed by SIGKILL", None),
        ([CORE, UNPLUG, RESET], "QEMU ended with status 1", None),
        # It was only asked for.
        ([CORE, RESET, UNPLUG, NOBODY], "QEMU was killed by SIGABRT", None),
        ([CORE, RESET, UNPLUG, NOBODY], "QEMU was killed by SIGSEGV", None),
        ([CORE, RESET], "QEMU was killed by SIGSEGV", None),
        # What it went from is no more once the machine has moved; a move that fails has moved nothing.
        ([CORE, UNPLUG, Move(), RESET], "QEMU was killed by SIGSEGV", None),
        ([CORE, Move(), UNPLUG, RESET], "QEMU was killed by SIGSEGV", "tcg-core-removal"),
        ([CORE, UNPLUG, Move()], "QEMU was killed by SIGSEGV", "tcg-core-removal"),
    ],
)
def test_the_death_by_a_core_needs_a_crash_and_a_core_that_has_gone(steps: list[Step], end: str, known: str | None) -> None:
    assert named(dies_at_the_end(steps, end)) == known


def build(*version: int) -> Any:
    return SimpleNamespace(version=version, name=".".join(map(str, version)))


def ground(one: Any, *, other: Any = None, onward: Any = None) -> FirmwareGround:
    harnesses: Any = [made and SimpleNamespace(build=made) for made in (one, other)]
    return FirmwareGround(harnesses[0], "tcg", other=harnesses[1], onward=onward)


# Only the one has tcg-core-removal, only the other pci-function-taken.
OLD, NEW = build(5, 2, 0), build(11, 1, 3)


def dies_of_a_reset(steps: list[Step], seen: Seen) -> Seen:
    """As with a core gone."""
    return replace(seen, end="QEMU was killed by SIGSEGV") if steps[-1] == RESET else seen


def dies_otherwise(steps: list[Step], seen: Seen) -> Seen:
    return replace(seen, end="QEMU was killed by SIGKILL") if steps[-1] == RESET else seen


def on_both(steps: Sequence[Step], one: Bug, other: Bug) -> Violation:
    both = Twins(FakeWorld(one), FakeWorld(other), ("old", "new"))
    with pytest.raises(Violated) as told:
        for step in steps:
            both.do(step)
    return told.value.violation


@pytest.mark.parametrize(
    ("one", "other", "known"),
    [
        (dies_of_a_reset, sound, "tcg-core-removal"),
        # The newer build has no such defect: that it dies is what is looked for.
        (sound, dies_of_a_reset, None),
        (dies_of_a_reset, dies_otherwise, None),
        (dies_of_a_reset, dies_of_a_reset, "tcg-core-removal"),
        (dies_otherwise, dies_otherwise, Twins.ALIKE),
    ],
)
def test_of_two_builds_the_one_that_broke_is_asked(one: Bug, other: Bug, known: str | None) -> None:
    found = ground(OLD, other=NEW).known(on_both([CORE, UNPLUG, RESET], one, other))
    assert (found and found[0]) == known


def test_where_both_builds_break_in_two_ways_both_must_be_known() -> None:
    def bus(steps: list[Step], seen: Seen) -> Seen:
        return replace(seen, end="QEMU was killed by SIGBUS") if steps[-1] == RESET else seen

    violation = on_both([CORE, UNPLUG, RESET], dies_of_a_reset, bus)
    assert [ground(OLD, other=other).known(violation) is not None for other in (OLD, NEW)] == [True, False]


@pytest.mark.parametrize(
    ("steps", "end", "known"),
    [
        ([CORE, UNPLUG, RESET, Move()], "QEMU was killed by SIGSEGV", "tcg-core-removal"),
        ([CORE, UNPLUG, RESET], "QEMU was killed by SIGSEGV", "tcg-core-removal"),
        # The process that the core went from is no more.
        ([CORE, UNPLUG, Move(), RESET], "QEMU was killed by SIGSEGV", None),
        ([card(1, "5.1"), Move(), card(2, "5.1")], "QEMU was killed by SIGSEGV", "pci-function-taken"),
        ([card(1, "5.1"), card(2, "5.1")], "QEMU was killed by SIGSEGV", None),
    ],
)
def test_of_a_machine_that_moves_on_the_build_is_asked_that_it_was_in(steps: list[Step], end: str, known: str | None) -> None:
    found = ground(OLD, onward=NEW).known(dies_at_the_end(steps, end))
    assert (found and found[0]) == known


def test_a_machine_that_is_broken_by_itself_is_no_known_defect() -> None:
    assert named(Violation((), "QEMU was killed by SIGSEGV", "the whole state", ended=True)) is None
