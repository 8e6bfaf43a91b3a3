"""Deadlines, on a clock of their own."""

from __future__ import annotations

from dataclasses import asdict

import pytest

from pytest_spapr.deadline import Deadline, budgets
from pytest_spapr.errors import DeadlineExpired


class Clock:
    """Stands still until told."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_it_runs_out() -> None:
    clock = Clock()
    deadline = Deadline(5, clock=clock)
    assert deadline.remaining == 5
    clock.now += 4
    assert deadline.remaining == 1
    assert not deadline.expired
    clock.now += 1
    assert deadline.expired
    clock.now += 100
    assert deadline.remaining == 0


@pytest.mark.parametrize("seconds", [0, -1])
def test_none_was_left_from_the_start(seconds: float) -> None:
    deadline = Deadline(seconds, clock=Clock())
    assert deadline.expired
    assert deadline.remaining == 0


def test_require() -> None:
    clock = Clock()
    deadline = Deadline(5, clock=clock)
    assert deadline.require("an event") == 5
    clock.now += 5
    with pytest.raises(DeadlineExpired) as expired:
        deadline.require("an event", "the guest sleeps")
    assert str(expired.value) == "waited 5.0 s in vain for an event: the guest sleeps"
    assert (expired.value.what, expired.value.seconds) == ("an event", 5)


def test_sooner_is_never_later() -> None:
    clock = Clock()
    deadline = Deadline(5, clock=clock)
    assert deadline.sooner(2).remaining == 2
    assert deadline.sooner(60).remaining == 5
    clock.now += 4
    inner = deadline.sooner(2)
    clock.now += 1
    assert inner.expired


def test_it_tells_what_is_left() -> None:
    clock = Clock()
    deadline = Deadline(5, clock=clock)
    clock.now += 2
    assert repr(deadline) == "<Deadline 3.0 of 5.0 s left>"


def test_the_real_clock_is_the_default() -> None:
    assert 0 < Deadline(60).remaining <= 60


def test_kvm_is_given_no_more_time_than_tcg() -> None:
    kvm, tcg = asdict(budgets("kvm")), asdict(budgets("tcg"))
    assert all(0 < kvm[name] <= tcg[name] for name in tcg)
