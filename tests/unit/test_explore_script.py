"""The tests of what exploration finds without a guest, played on a fake machine: they hold against it what the search does."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pytest_spapr.errors import QmpRefused
from pytest_spapr.explore import observe, script
from pytest_spapr.explore.history import History, Violated, Violation
from pytest_spapr.explore.model import DELETED
from pytest_spapr.explore.steps import Command, Move, Step
from pytest_spapr.hotplug import drc
from pytest_spapr.timeline import Lane, Timeline

from .explored import FACTS, FakeWorld

CORE = Command("device_add", {"driver": FACTS.core_type, "id": "core1", "core-id": 1})
UNPLUG = Command("device_del", {"id": "core1"})
TWICE = Command("device_add", {**CORE.arguments, "id": "core2"})


class FakeMachine:
    """What such a test needs of one. :ivar rounds: of RCU that the end of a device takes; it is told to the QEMU that it went from.

    :ivar connectors: how many get a device by each plug. :ivar stays: whether devices that go are still listed.
    """

    def __init__(self, *, rounds: int = 1, connectors: int = 1, stays: bool = False) -> None:
        self.timeline = Timeline()
        self.qmp = self
        self._rounds, self._connectors, self._stays = rounds, connectors, stays
        self._devices: list[str] = []
        self._owed: dict[str, int] = {}

    def execute(self, name: str, arguments: Mapping[str, Any] | None = None) -> Any:
        given = arguments or {}
        match name:
            case "device_add" if given["driver"] == "no-such-device":
                self._drain()
                raise QmpRefused(name, "GenericError", "no such device")
            case "device_add" if self._devices:
                raise QmpRefused(name, "GenericError", "there is one")
            case "device_add":
                self._devices.append(given["id"])
                for number in range(self._connectors):
                    self.timeline.record(Lane.DRC, "", {"event": drc.ATTACH, "drc": 0x10000008 + number})
            case "device_del":
                self._owed[given["id"]] = self._rounds
                if not self._stays:
                    self._devices.remove(given["id"])
            case "qom-list":
                return [{"name": "type", "type": "string"}, *({"name": one, "type": "child<x>"} for one in self._devices)]
        return None

    def migrate(self, through: Path | None = None) -> None:
        # Of what is owed another QEMU knows nothing.
        self._owed.clear()

    def _drain(self) -> None:
        for device, rounds in list(self._owed.items()):
            self._owed[device] = rounds - 1
            if rounds == 1:
                del self._owed[device]
                self.timeline.record(Lane.EVENT, "", {"event": DELETED, "data": {"device": device}})


def history(*steps: Step) -> Violation:
    """Return what a machine must be at the end of a history, as of one that broke there."""
    one = History(FakeWorld())
    for step in steps:
        one.do(step)
    with pytest.raises(Violated) as told:
        one._violate("", "")
    return told.value.violation


def run(violation: Violation, machine: FakeMachine, events: int = 0) -> None:
    """Play the test of a violation. What is asked of QEMU's saved state is what there must be.

    :param events: how many the guest finds when it takes them.
    """
    names: dict[str, Any] = {}
    exec(script.test(violation, "It was so.", "history", {}), names)

    @contextmanager
    def at(path: Path) -> Iterator[Any]:
        yield names["Qtest"]

    names["Qtest"] = type(
        "Qtest", (), {"at": at, "arguments": lambda _: (), "reconnect": lambda _: None, "take_events": lambda: events}
    )
    names["PlayedGuest"] = lambda _: None
    names["device_state"] = lambda _: b""
    names["connector_states"] = lambda _: violation.states
    names["test_history"](lambda **_: machine)


def test_the_test_of_a_history_passes_where_nothing_breaks() -> None:
    run(history(CORE), FakeMachine())
    run(history(CORE, TWICE), FakeMachine())
    run(history(CORE, UNPLUG), FakeMachine())


@pytest.mark.parametrize(
    ("machine", "steps"),
    [
        (lambda: FakeMachine(connectors=2), [CORE]),
        (lambda: FakeMachine(connectors=0), [CORE]),
        (lambda: FakeMachine(stays=True), [CORE, UNPLUG]),
    ],
    ids=["one connector too many", "none", "a device that stays"],
)
def test_the_test_of_a_history_fails_where_the_search_would_find_something(
    machine: Callable[[], FakeMachine], steps: Sequence[Step]
) -> None:
    with pytest.raises(AssertionError):
        run(history(*steps), machine())


def test_the_test_of_a_history_waits_for_what_takes_some_rounds_and_not_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    run(history(CORE, UNPLUG), FakeMachine(rounds=3))
    monkeypatch.setattr(observe, "SETTLE_SECONDS", 0.0)
    with pytest.raises(AssertionError):
        run(history(CORE, UNPLUG), FakeMachine(rounds=3))


def test_events_that_nobody_knows_of_are_taken_after_the_last_step() -> None:
    one = History(FakeWorld(lambda _, seen: replace(seen, count=2) if seen.count is not None else seen))
    one.do(CORE)
    with pytest.raises(Violated, match="events for the guest: expected 1, observed 2") as told:
        one.finish()
    violation = told.value.violation
    run(violation, FakeMachine(), events=1)
    with pytest.raises(AssertionError):
        run(violation, FakeMachine(), events=2)
    assert "await machine.drain()\n    machine.take_events()\n" in script.script(
        violation, "It was so.", "history.py", ("qemu",), ()
    )


def test_before_a_move_the_test_waits_for_what_can_be_told_to_no_other_qemu() -> None:
    run(history(CORE, UNPLUG, Move(), CORE, UNPLUG), FakeMachine(rounds=2))


def test_the_program_has_qemu_run_what_waits_for_rcu_before_a_move() -> None:
    text = script.script(history(CORE, UNPLUG, Move()), "It was so.", "history.py", ("qemu",), ())
    names: dict[str, Any] = {"__name__": "history"}
    exec(text.replace("asyncio.run(main())", ""), names)
    asked: list[str] = []

    whole: Any = names["Machine"]

    class Machine(whole):  # type: ignore[misc]
        async def execute(self, name: str, arguments: Any = None, qmp: Any = None) -> None:
            asked.append(str((arguments or {}).get("driver", name)))
            if asked.count("no-such-device") == 1 and name != "device_del":
                # The move itself is not for a fake.
                raise InterruptedError

    with pytest.raises(InterruptedError):
        asyncio.run(names["history"](Machine("directory")))
    assert asked == [FACTS.core_type, "device_del", "no-such-device"]
