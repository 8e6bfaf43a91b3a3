"""Deadlines by a clock of the tests' own."""

from __future__ import annotations

from dataclasses import fields

import pytest

from pytest_spapr.deadline import Budgets, Deadline, WorkingTime, budgets, host_slowness, slowness, working_time
from pytest_spapr.errors import DeadlineExpired


class Clock:
    """Stands still until told."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_it_runs_down_and_stays_expired(clock: Clock) -> None:
    deadline = Deadline(10, clock=clock)
    assert (deadline.remaining, deadline.expired) == (10, False)
    clock.now += 9.5
    assert (deadline.remaining, deadline.expired) == (0.5, False)
    clock.now += 0.5
    assert (deadline.remaining, deadline.expired) == (0, True)
    clock.now += 100
    assert (deadline.remaining, deadline.expired) == (0, True)
    assert deadline.seconds == 10


@pytest.mark.parametrize("seconds", [0, -1])
def test_no_time_is_expired_at_once(clock: Clock, seconds: float) -> None:
    deadline = Deadline(seconds, clock=clock)
    assert (deadline.remaining, deadline.expired) == (0, True)


def test_require_gives_what_is_left_or_says_what_for(clock: Clock) -> None:
    deadline = Deadline(3, clock=clock)
    clock.now += 1
    assert deadline.require("tea") == 2
    clock.now += 2
    with pytest.raises(DeadlineExpired, match=r"^waited 3\.0 s in vain for tea: no water$") as expired:
        deadline.require("tea", "no water")
    assert (expired.value.what, expired.value.seconds) == ("tea", 3)


@pytest.mark.parametrize(("asked", "given"), [(1, 1), (4, 4), (100, 4), (-1, 0)])
def test_sooner_never_lasts_longer(clock: Clock, asked: float, given: float) -> None:
    deadline = Deadline(5, clock=clock)
    clock.now += 1
    part = deadline.sooner(asked)
    assert part.remaining == given
    clock.now += given
    assert part.expired


def test_the_clock_of_real_time_goes_forward() -> None:
    deadline = Deadline(60)
    first = deadline.remaining
    assert 59 < deadline.remaining <= first <= 60
    assert repr(deadline) == "<Deadline 60.0 of 60.0 s left>"


def test_every_budget_is_positive_and_tcg_has_the_larger_ones() -> None:
    tcg, kvm = budgets("tcg"), budgets("kvm")
    for field in fields(Budgets):
        assert getattr(tcg, field.name) >= getattr(kvm, field.name) > 0
    assert tcg != kvm


def test_budgets_grow_with_the_slowness_of_the_host() -> None:
    usual, slow = budgets("kvm", 1), budgets("kvm", 10)
    assert [getattr(slow, field.name) for field in fields(Budgets)] == [
        10 * getattr(usual, field.name) for field in fields(Budgets)
    ]


@pytest.mark.parametrize(
    ("seconds", "times"),
    [
        ([0.0001] * 3, 1),
        ([0.003] * 3, 1),
        ([0.5, 0.03, 0.04], pytest.approx(10)),
        ([9.0] * 3, 30),
    ],
    ids=["fast", "usual", "the best of three", "bounded"],
)
def test_a_host_is_slow_by_the_cpu_time_of_a_piece_of_work(seconds: list[float], times: float) -> None:
    assert slowness(iter(seconds).__next__) == times


def test_a_host_like_this_one_is_not_slow() -> None:
    assert host_slowness() == 1


def test_working_time_stands_still_while_a_person_is_waited_for(clock: Clock) -> None:
    working = WorkingTime(clock)
    deadline = Deadline(10, clock=working)
    clock.now += 4
    working.stop()
    clock.now += 1000
    assert deadline.remaining == 6
    working.stop()
    clock.now += 1000
    working.go()
    working.go()
    assert deadline.remaining == 6
    clock.now += 5
    assert deadline.remaining == 1
    working.stop()
    clock.now += 1000
    working.go()
    clock.now += 1
    assert deadline.expired


def test_working_time_is_what_deadlines_go_by() -> None:
    deadline = Deadline(1000)
    working_time.stop()
    try:
        assert deadline.remaining == deadline.remaining
    finally:
        working_time.go()
    assert 999 < deadline.remaining < 1000
