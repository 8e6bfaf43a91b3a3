"""Preparation ahead, with machines that are none."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pytest_spapr.ahead import Ahead
from pytest_spapr.errors import MachineError
from pytest_spapr.qemu.argv import MachineSpec
from pytest_spapr.slots import Slots

SPEC = MachineSpec()
OTHER = MachineSpec(cpus=2)
IMAGE: Any = SimpleNamespace(directory=Path("/image"))
OTHER_IMAGE: Any = SimpleNamespace(directory=Path("/other"))


class FakeMachine:
    """Writes down what is done to it; ``fails`` names the act that it fails at."""

    def __init__(self, fails: str | None) -> None:
        self.acts: list[str] = []
        self._fails = fails
        self.guest = SimpleNamespace(run=lambda command: self._act("ssh"), renew=lambda: self._act("renew"))

    def _act(self, name: str) -> None:
        self.acts.append(name)
        if name == self._fails:
            raise MachineError(f"fails at {name}")

    def stop(self) -> None:
        self._act("stop")

    def cont(self) -> None:
        self._act("cont")

    def close(self) -> None:
        self._act("close")


class FakeStarter:
    """Clones fake machines. :ivar weights: what was held of the slots when each was started."""

    def __init__(self, slots: Slots) -> None:
        self.machines: list[FakeMachine] = []
        self.fails: str | None = None
        self.has_template = True
        self.free: list[bool] = []
        self.may_start = threading.Event()
        self.may_start.set()
        self._slots = slots

    def clone(self, shared: Any, spec: Any, image: Any, timeline: Any) -> FakeMachine | None:
        self.may_start.wait()
        lease = self._slots.try_take(1)
        self.free.append(lease is not None)
        if lease is not None:
            lease.release()
        if self.fails == "clone":
            raise MachineError("fails at clone")
        if not self.has_template:
            return None
        self.machines.append(FakeMachine(self.fails))
        return self.machines[-1]


@pytest.fixture
def slots(tmp_path: Path) -> Slots:
    return Slots(tmp_path, 1, 1024)


@pytest.fixture
def starter(slots: Slots) -> FakeStarter:
    return FakeStarter(slots)


@pytest.fixture
def ahead(starter: FakeStarter, slots: Slots) -> Iterator[Ahead]:
    shared: Any = None
    one: Any = starter
    with_starter = Ahead(one, shared, slots)
    yield with_starter
    starter.may_start.set()
    with_starter.drop()


def test_what_was_prepared_is_taken_running_and_once(ahead: Ahead, starter: FakeStarter) -> None:
    ahead.prepare(SPEC, IMAGE)
    machine: Any = ahead.take(SPEC, IMAGE)
    assert machine is starter.machines[0]
    assert machine.acts == ["ssh", "stop", "cont", "renew"]
    assert ahead.take(SPEC, IMAGE) is None


def test_nothing_prepared(ahead: Ahead) -> None:
    assert ahead.take(SPEC, IMAGE) is None


def test_it_waits_paused_and_holds_no_slot(ahead: Ahead, starter: FakeStarter, slots: Slots) -> None:
    ahead.prepare(SPEC, IMAGE)
    ahead.take(SPEC, IMAGE)
    assert starter.free == [False]
    with slots.take(1) as lease:
        assert lease.weight == 1


def test_with_all_slots_taken_it_is_prepared_all_the_same(ahead: Ahead, starter: FakeStarter, slots: Slots) -> None:
    with slots.take(1):
        ahead.prepare(SPEC, IMAGE)
        assert ahead.take(SPEC, IMAGE) is not None


def test_another_run_that_prepares_beyond_the_slots_comes_first(ahead: Ahead, starter: FakeStarter, slots: Slots) -> None:
    with slots.take(1), slots.preparation() as other:  # type: ignore[union-attr]
        assert other
        ahead.prepare(SPEC, IMAGE)
        assert ahead.take(SPEC, IMAGE) is None
    assert not starter.machines


@pytest.mark.parametrize(("spec", "image"), [(OTHER, IMAGE), (SPEC, OTHER_IMAGE)], ids=["machine", "image"])
def test_one_that_does_not_fit_stays_until_another_is_prepared(
    ahead: Ahead, starter: FakeStarter, spec: MachineSpec, image: Any
) -> None:
    ahead.prepare(SPEC, IMAGE)
    assert ahead.take(spec, image) is None
    ahead.prepare(SPEC, IMAGE)
    ahead.prepare(spec, image)
    assert starter.machines[0].acts[-1] == "close"
    machine: Any = ahead.take(spec, image)
    assert [machine] == starter.machines[1:]


def test_drop_ends_it_also_while_it_starts(ahead: Ahead, starter: FakeStarter) -> None:
    starter.may_start.clear()
    ahead.prepare(SPEC, IMAGE)
    threading.Timer(0.05, starter.may_start.set).start()
    ahead.drop()
    assert starter.machines[0].acts == ["ssh", "stop", "close"]
    assert ahead.take(SPEC, IMAGE) is None


@pytest.mark.parametrize("act", ["clone", "ssh", "stop", "cont", "renew"])
def test_what_fails_ahead_is_nobodys_business_and_leaves_nothing(
    ahead: Ahead, starter: FakeStarter, slots: Slots, act: str
) -> None:
    starter.fails = act
    ahead.prepare(SPEC, IMAGE)
    assert ahead.take(SPEC, IMAGE) is None
    assert all(machine.acts[-1] == "close" for machine in starter.machines)
    with slots.take(1) as lease:
        assert lease.held
    starter.fails = None
    ahead.prepare(SPEC, IMAGE)
    assert ahead.take(SPEC, IMAGE) is not None


def test_without_a_template_nothing_is_prepared(ahead: Ahead, starter: FakeStarter) -> None:
    starter.has_template = False
    ahead.prepare(SPEC, IMAGE)
    assert ahead.take(SPEC, IMAGE) is None
