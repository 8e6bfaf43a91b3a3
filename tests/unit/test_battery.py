"""Scenarios, observations and their comparison, without QEMU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import pytest

from pytest_spapr.battery.compare import Comparison, Verdict, compare
from pytest_spapr.battery.observation import Observation, Result, in_words, observe
from pytest_spapr.battery.run import perform
from pytest_spapr.battery.scenarios import SCENARIOS, Scenario, chosen, named
from pytest_spapr.battery.stage import Stage
from pytest_spapr.errors import ConfigError, LaunchFailed, MachineDied
from pytest_spapr.hotplug.attempt import Attempt, Views
from pytest_spapr.hotplug.contract import Contract
from pytest_spapr.hotplug.outcome import Kind, Outcome, Presence, Silence
from pytest_spapr.hotplug.rows import packaged_rows
from pytest_spapr.timeline import Lane, Timeline

CONTRACT = Contract(frozenset({"DEVICE_UNPLUG_GUEST_ERROR"}), "6.1.0")
GUEST_ERROR, MEM_ERROR = "DEVICE_UNPLUG_GUEST_ERROR", "MEM_UNPLUG_ERROR"


def attempt(**given: Any) -> Attempt:
    values: dict[str, Any] = {
        "device": "core1",
        "kind": Kind.CORE,
        "outcome": Outcome.REMOVED,
        "cause": None,
        "asked": True,
        "reply": None,
        "events": ({"event": "DEVICE_DELETED"},),
        "evidence": (),
        "views": Views(Presence.ABSENT, Presence.ABSENT),
        "elapsed": 0.1,
        "began": 0,
        "ended": 100,
        "waiting": False,
    }
    return Attempt(**{**values, **given})


def seen(**given: Any) -> Observation:
    step = given.pop("step", "unplug")
    events = tuple({"event": name} for name in given.pop("events", ("DEVICE_DELETED",)))
    return observe(attempt(events=events, **given), (), (), step=step, situation=None, differences=None)


def ran(*observations: Observation, **given: Any) -> Result:
    return Result(scenario="x", observations=observations, **given)


def changes(comparison: Comparison) -> list[str]:
    return [str(change) for change in comparison.changes]


class TestObservation:
    def test_what_differs_from_machine_to_machine_is_left_out_of_the_words(self) -> None:
        reply = "core-id 1 unplug is still pending, 13 seconds timeout remaining"
        assert seen(reply=reply).reply == "core-id 1 unplug is still pending, {number} seconds timeout remaining"
        assert seen(reply="already in progress for device core1").reply == "already in progress for device {id}"
        assert seen(reply="not of core10, not of xcore1").reply == "not of core10, not of xcore1"

    def test_events_in_a_row_are_counted(self) -> None:
        assert seen(events=(MEM_ERROR, GUEST_ERROR, GUEST_ERROR)).events == (MEM_ERROR, f"{GUEST_ERROR} x2")
        assert seen(events=(GUEST_ERROR, MEM_ERROR, GUEST_ERROR)).events == (GUEST_ERROR, MEM_ERROR, GUEST_ERROR)

    def test_each_connector_has_its_own_transitions(self) -> None:
        timeline = Timeline()
        for data in (
            {"event": "spapr_drc_unplug_request", "drc": 1},
            {"event": "spapr_drc_set_isolation_state", "drc": 2, "state": 0},
            {"event": "spapr_drc_set_isolation_state", "drc": 1, "state": 1},
            {"event": "spapr_drc_reset", "drc": 3},
        ):
            timeline.record(Lane.DRC, "", data)
        timeline.step("unplug_request")
        one = observe(attempt(), timeline.since(), (1, 2), step="unplug", situation=None, differences=None)
        assert one.drcs == (("unplug_request", "set_isolation_state unisolate"), ("set_isolation_state isolate",))

    @pytest.mark.parametrize(
        ("given", "words"),
        [
            ({}, "removed: DEVICE_DELETED"),
            ({"asked": False}, "removed without asking: DEVICE_DELETED"),
            ({"events": (), "waiting": True}, "removed, QEMU still waits"),
            (
                {"outcome": Outcome.PENDING, "cause": Silence.NOT_DELIVERED, "events": (), "waiting": True},
                "pending (not delivered)",
            ),
            ({"outcome": Outcome.PENDING, "events": ()}, "pending, QEMU no longer waits"),
            ({"outcome": Outcome.PENDING, "events": (), "waiting": None}, "pending"),
            ({"outcome": Outcome.REJECTED, "reply": "no", "events": (), "waiting": True}, "rejected: “no”"),
        ],
    )
    def test_words(self, given: dict[str, Any], words: str) -> None:
        assert in_words(seen(**given)) == words


class TestCompare:
    def test_an_event_that_is_gone_is_named_and_nothing_else(self) -> None:
        refused = {"outcome": Outcome.REFUSED, "evidence": ("this run's",)}
        old = [ran(seen(**refused, events=(MEM_ERROR, GUEST_ERROR, GUEST_ERROR), elapsed=0.1), seen(step="retry"))] * 3
        new = [ran(seen(**refused, events=(GUEST_ERROR, GUEST_ERROR), elapsed=0.4), seen(step="retry"))] * 3
        found = compare("x", old, new)
        assert found.verdict is Verdict.CHANGED
        assert changes(found) == [
            f"unplug: events: {MEM_ERROR}, {GUEST_ERROR} x2 -> {GUEST_ERROR} x2 ({MEM_ERROR} is no longer sent)"
        ]

    @pytest.mark.parametrize(
        ("given", "change"),
        [
            ({"reply": "no"}, "reply: nothing -> no"),
            ({"outcome": Outcome.PENDING, "waiting": True, "cause": Silence.STILL_WORKING}, "outcome: removed -> pending"),
            ({"cause": Silence.STILL_WORKING}, "cause: nothing -> still working"),
            ({"waiting": True}, "waiting: no -> yes"),
            ({"asked": False}, "guest asked: yes -> no"),
            ({"views": Views(Presence.ABSENT, Presence.PARTIAL)}, "the guest's view: absent -> partial"),
            ({"elapsed": 9.0}, "time: 0.1 s -> 9.0 s"),
        ],
    )
    def test_each_fact_can_change(self, given: dict[str, Any], change: str) -> None:
        assert changes(compare("x", [ran(seen())], [ran(seen(**given))])) == [f"unplug: {change}"]

    def test_a_connector_that_goes_another_way_is_a_change(self) -> None:
        old, new = (replace(seen(), drcs=(states,)) for states in (("isolate", "unusable"), ("isolate",)))
        assert changes(compare("x", [ran(old)], [ran(new)])) == ["unplug: DRC transitions: [isolate, unusable] -> [isolate]"]

    def test_what_varies_on_one_build_is_no_change(self) -> None:
        once, twice = ran(seen(events=(GUEST_ERROR,))), ran(seen(events=(GUEST_ERROR, GUEST_ERROR)))
        assert compare("x", [once], [twice]).verdict is Verdict.CHANGED
        assert compare("x", [once, twice], [twice, twice]).verdict is Verdict.SAME

    def test_slow_is_another_time_only_if_it_is_so_each_time(self) -> None:
        quick, slow = ran(seen(elapsed=0.1)), ran(seen(elapsed=9.0))
        assert compare("x", [quick, quick], [slow, quick]).verdict is Verdict.SAME
        assert compare("x", [ran(seen(elapsed=4.0))], [ran(seen(elapsed=15.0))]).verdict is Verdict.SAME
        assert changes(compare("x", [slow, slow], [quick, ran(seen(elapsed=0.2))])) == ["unplug: time: 9.0 s -> 0.1 to 0.2 s"]

    def test_a_known_defect_says_nothing_and_another_death_is_a_change(self) -> None:
        known = ran(trouble="MachineDied: SIGSEGV", crashed=True, defect="tcg-core-removal")
        found = compare("x", [known], [ran(seen())])
        assert (found.verdict, found.why) == (Verdict.UNKNOWN, ("old: known defect tcg-core-removal: MachineDied: SIGSEGV",))
        assert compare("x", [known, ran(seen())], [ran(seen())]).verdict is Verdict.SAME

    def test_a_death_of_no_known_defect_is_one_change(self) -> None:
        lived = ran(seen(), seen(step="repeat"), seen(step="retry"))
        died = {"trouble": "MachineDied: SIGSEGV", "crashed": True}
        for end, change in (
            ([seen(outcome=Outcome.CRASHED)], "unplug: outcome: removed -> crashed"),
            ([seen()], "repeat: QEMU: lives -> dies: MachineDied: SIGSEGV"),
            (lived.observations, "end: QEMU: lives -> dies: MachineDied: SIGSEGV"),
        ):
            assert changes(compare("x", [lived], [ran(*end, **died)])) == [change]
            assert compare("x", [lived], [lived, ran(*end, **died)]).verdict is Verdict.SAME

    def test_what_was_not_seen_cannot_be_told(self) -> None:
        found = compare("x", [ran(seen())], [ran(trouble="GuestError: no"), ran(trouble="GuestError: no")])
        assert (found.verdict, found.why) == (Verdict.UNKNOWN, ("new: GuestError: no",))
        assert compare("x", [], [ran(seen())]).why == ("old: it was not run",)


class TestScenarios:
    def test_names_are_unique_and_steps_are_sorted_by_kind(self) -> None:
        names = [scenario.name for scenario in SCENARIOS]
        assert len(set(names)) == len(names)
        assert set(names).isdisjoint(Kind), "a kind stands for all of its scenarios"
        kinds = [scenario.kind for scenario in SCENARIOS]
        assert kinds == sorted(kinds, key=list(Kind).index)

    def test_a_kind_stands_for_all_of_its_scenarios(self) -> None:
        assert chosen([]) == SCENARIOS
        assert {scenario.kind for scenario in chosen(["phb", "core-removal"])} == {Kind.PHB, Kind.CORE}
        assert [scenario.name for scenario in chosen(["core-removal"])] == ["core-removal"]

    @pytest.mark.parametrize(
        ("version", "accelerator", "defect"),
        [
            ((5, 2, 0), "tcg", "tcg-pending-core-migration"),
            ((7, 2, 22), "tcg", "tcg-pending-core-migration"),
            ((10, 0, 13), "tcg", "tcg-smp-migration"),
            ((10, 0, 13), "kvm", None),
            ((11, 1, 3), "tcg", None),
        ],
    )
    def test_one_that_a_known_defect_would_hang_is_prevented(
        self, version: tuple[int, int, int], accelerator: str, defect: str | None
    ) -> None:
        build: Any = SimpleNamespace(version=version)
        found = named("core-migration").prevented_by(build, accelerator, None)
        assert (found and found.id) == defect
        assert named("dimm-migration").prevented_by(build, accelerator, None) is None

    def test_one_that_does_not_exist_is_an_error_that_lists_them(self) -> None:
        with pytest.raises(ConfigError, match=r"no scenario is called 'cores'; there are core-removal, "):
            chosen(["cores"])

    @pytest.mark.parametrize("kind", list(Kind), ids=str)
    def test_every_situation_that_a_contract_speaks_of_is_provoked(self, kind: Kind) -> None:
        provoked = {situation for scenario in chosen([kind]) for situation in situations(scenario)}
        # Of a device that is passed through, which few builds can have: tests/hotplug/test_vfio_recovery.py provokes it.
        provoked.add("silence: host error")
        assert {row.subject[1] for row in packaged_rows() if row.subject[0] is kind} <= provoked


def situations(scenario: Scenario) -> list[str]:
    """What a scenario says that its steps are, on a machine that does nothing."""
    stage = MagicMock()
    stage.machine.pci.plug_functions.return_value = [MagicMock(), MagicMock()]
    scenario.play(stage)
    return [call.args[-1] for step in (stage.unplug, stage.follow, stage.outlast) for call in step.call_args_list]


class Device:
    """Is removed, and says so as often as it is asked."""

    drcs = ()

    def unplug(self) -> Attempt:
        return attempt()


class TestPerform:
    def test_steps_are_held_against_the_contract(self) -> None:
        def play(stage: Stage) -> None:
            stage.unplug(Device(), "removal")  # type: ignore[arg-type]
            stage.unplug(Device(), "rejection: boot core", step="wrong")  # type: ignore[arg-type]
            stage.unplug(Device(), "no such situation", step="not promised")  # type: ignore[arg-type]
            stage.unplug(Device(), None, step="not asked for")  # type: ignore[arg-type]

        result = perform(scenario(play), machine(), CONTRACT)
        assert result.trouble is None
        assert [(one.step, one.promised, bool(one.differences)) for one in result.observations] == [
            ("unplug", True, False),
            ("wrong", True, True),
            ("not promised", False, False),
            ("not asked for", False, False),
        ]

    def test_what_was_seen_before_the_trouble_stays(self) -> None:
        def play(stage: Stage) -> None:
            stage.unplug(Device(), "removal")  # type: ignore[arg-type]
            stage.machine.timeline.end(MachineDied("QEMU (pid 1) was killed by SIGSEGV", -11))
            stage.machine.timeline.wait(lambda _: None, since=0, deadline=None, what="")  # type: ignore[arg-type]

        result = perform(scenario(play), machine(), CONTRACT)
        assert len(result.observations) == 1
        assert (result.trouble, result.crashed) == ("MachineDied: QEMU (pid 1) was killed by SIGSEGV", True)

    def test_a_machine_that_does_not_start_is_the_results_trouble(self) -> None:
        @contextmanager
        def broken() -> Iterator[Any]:
            raise LaunchFailed("QEMU did not start: no such machine", 1)
            yield

        result = perform(scenario(lambda stage: None), broken, CONTRACT)
        assert (result.trouble, result.crashed) == ("LaunchFailed: QEMU did not start: no such machine", False)

    def test_two_steps_of_one_name_are_a_bug(self) -> None:
        def play(stage: Stage) -> None:
            stage.unplug(Device(), "removal")  # type: ignore[arg-type]
            stage.unplug(Device(), "removal")  # type: ignore[arg-type]

        with pytest.raises(ValueError, match="two steps that are called 'unplug'"):
            perform(scenario(play), machine(), CONTRACT)


def scenario(play: Any) -> Scenario:
    return Scenario(name="x", title="x", kind=Kind.CORE, play=play)


def machine() -> Any:
    @contextmanager
    def started() -> Iterator[Any]:
        yield SimpleNamespace(timeline=Timeline(), attempts=[])

    return started
