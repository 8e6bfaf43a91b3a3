"""Exploration: a planted bug is found and made small; what is known is left out; what is found is written so that it can be had again."""

from __future__ import annotations

import ast
import errno
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pytest_spapr.deadline import Deadline
from pytest_spapr.errors import ConfigError
from pytest_spapr.explore import findings, known, observe
from pytest_spapr.explore.campaign import Campaign
from pytest_spapr.explore.firmware import FirmwareScene, shape_for
from pytest_spapr.explore.history import Done, History, Twins, Violated, Violation
from pytest_spapr.explore.instances import Instances
from pytest_spapr.explore.known import Avoid
from pytest_spapr.explore.model import LMB, Expected, Model
from pytest_spapr.explore.pairs import Pair, possible
from pytest_spapr.explore.script import Onward
from pytest_spapr.explore.search import Order, Outcome, play, play_round
from pytest_spapr.explore.shrink import shrink
from pytest_spapr.explore.steps import Aside, Call, Command, Move, OddCall, Step, TakeEvents, as_json, from_json
from pytest_spapr.explore.world import Seen, WorldEnded
from pytest_spapr.hotplug.drc_model import NOT_PENDING, Transition, class_of
from pytest_spapr.hotplug.outcome import Kind

from .explored import (
    FACTS,
    HEARS_ALL,
    Bug,
    FakeGround,
    FakeWorld,
    dies_of_a_phb_that_comes_again,
    dies_of_a_refusal_after_a_move,
    dies_of_phb_after_core,
    dies_of_phb_beside_core,
    has_no_move_with_a_card,
    loses_an_event,
    sound,
    tells_twice,
)

ORDER = Order(seed=1, number=1, examples=30)
CORE = Command("device_add", {"driver": FACTS.core_type, "id": "core1", "core-id": 1})
UNPLUG = Command("device_del", {"id": "core1"})
PHB = Command("device_add", {"driver": "spapr-pci-host-bridge", "id": "phb1", "index": 1})
RESET = Command("system_reset")
MEMORY = Command("object-add", {"qom-type": "memory-backend-ram", "id": "memory1", "size": 2 * LMB})
DIMM = Command("device_add", {"driver": "pc-dimm", "id": "dimm1", "memdev": "memory1"})
SUBJECT = findings.Subject(
    qemu="QEMU 11.1.3",
    command=("qemu-system-ppc64",),
    machine=("-machine", "pseries", "-S"),
    shape={"max_cpus": 8},
    accelerator="tcg",
    version=(11, 1, 3),
)


def rounds(ground: FakeGround, wanted: frozenset[Pair] = frozenset()) -> Iterator[Outcome]:
    """Yield rounds. What one finds is chance, also with one seed: hypothesis takes constants from all modules that are loaded."""
    for number in range(1, 20):
        yield play_round(Order(seed=1, number=number, examples=50, wanted=wanted), ground)


def broken(steps: Sequence[Step], bug: Bug) -> Violation:
    found = play(steps, FakeGround(bug))
    assert found is not None
    return found


def test_a_machine_that_does_what_the_model_says_is_sound() -> None:
    ground = FakeGround()
    outcome = play_round(ORDER, ground)
    assert outcome.finding is None
    assert outcome.histories >= 30
    assert outcome.steps > 500
    assert all(world.closed for world in ground.worlds)


@pytest.mark.parametrize(
    ("bug", "steps"),
    [
        # A core comes and goes, a PHB comes.
        (dies_of_phb_after_core, 3),
        # A device comes, the guest has it, it is to go, it goes.
        (loses_an_event, 4),
        # Or it is refused. By a reset the guest has it in one step, else in two.
        (tells_twice, 5),
    ],
)
def test_a_planted_bug_is_found_and_made_as_small_as_it_can_be(bug: Bug, steps: int) -> None:
    found = next(outcome.finding for outcome in rounds(FakeGround(bug)) if outcome.finding)
    # A memory device needs a backend before it.
    left = [step for step in found.violation.steps if not (isinstance(step, Command) and step.name == "object-add")]
    assert len(left) <= steps
    assert found.rate == "each time"


# That a pending DIMM is not asked for again holds for all builds.
@pytest.mark.parametrize("feature", sorted(HEARS_ALL - {"repeat-dimm-rejected"}))
def test_a_build_that_does_one_thing_otherwise_than_it_says_is_noticed(feature: str) -> None:
    class Other(FakeGround):
        def world(self) -> FakeWorld:
            return FakeWorld(facts=replace(FACTS, features=HEARS_ALL - {feature}))

    pending = frozenset(pair for pair in possible(HEARS_ALL) if pair[1] in NOT_PENDING)
    assert any(outcome.finding for outcome in rounds(Other(), pending))


def test_one_seed_gives_one_row_of_histories() -> None:
    orders = [ORDER, ORDER, replace(ORDER, number=2)]
    first, same, other = (play_round(replace(order, examples=60), FakeGround(dies_of_phb_beside_core)) for order in orders)
    assert (first.histories, first.steps) == (same.histories, same.steps)
    assert (first.histories, first.steps) != (other.histories, other.steps)


def test_what_breaks_only_now_and_then_is_made_small_all_the_same_and_its_rate_is_told() -> None:
    plays = itertools.count()

    def now_and_then(steps: list[Step], seen: Seen) -> Seen:
        return dies_of_phb_after_core(steps, seen) if len(steps) > 1 and next(plays) % 3 else seen

    steps: list[Step] = [RESET, TakeEvents(), CORE, RESET, UNPLUG, RESET, PHB, RESET]
    violation = next(found for _ in range(9) if (found := play(steps, FakeGround(now_and_then))))
    shrunk = shrink(violation, lambda steps: play(steps, FakeGround(now_and_then)), Deadline(60))
    assert shrunk.violation.steps == (CORE, UNPLUG, PHB)
    assert 0 < shrunk.broke < shrunk.played
    assert shrunk.rate == f"{shrunk.broke} of 5 times"


@pytest.mark.parametrize(("seconds", "played"), [(0, 1), (60, 5)])
def test_a_history_is_played_once_more_at_least_and_as_often_as_there_is_time_for(seconds: float, played: int) -> None:
    violation = broken([CORE, UNPLUG, PHB], dies_of_phb_after_core)
    shrunk = shrink(violation, lambda steps: play(steps, FakeGround(dies_of_phb_after_core)), Deadline(seconds))
    assert (shrunk.broke, shrunk.played, shrunk.rate) == (played, played, "each time")


def test_a_simpler_step_takes_the_place_of_another_one() -> None:
    steps = [Command("device_add", {**CORE.arguments, "core-id": 5}), UNPLUG, PHB]
    found = shrink(
        broken(steps, dies_of_phb_after_core), lambda steps: play(steps, FakeGround(dies_of_phb_after_core)), Deadline(60)
    )
    assert found.violation.steps == (CORE, UNPLUG, PHB)


def test_two_steps_that_make_up_for_each_other_are_left_out_together() -> None:
    def odd(steps: list[Step], seen: Seen) -> Seen:
        return seen if steps.count(RESET) % 2 else dies_of_phb_after_core(steps, seen)

    found = shrink(broken([CORE, RESET, UNPLUG, RESET, PHB], odd), lambda steps: play(steps, FakeGround(odd)), Deadline(60))
    assert found.violation.steps == (CORE, UNPLUG, PHB)


def test_a_known_defect_is_counted_and_left_out_from_then_on() -> None:
    ground = FakeGround(dies_of_phb_after_core, known=("tcg-core-removal", Avoid.CORE_REMOVAL))
    outcome = next(outcome for outcome in rounds(ground) if outcome.defects)
    assert outcome.finding is None
    assert set(outcome.defects) == {"tcg-core-removal"}
    assert outcome.avoid == {Avoid.CORE_REMOVAL}
    behind = play_round(replace(ORDER, number=2, examples=40, avoid=frozenset(outcome.avoid)), ground)
    assert not behind.defects


def test_what_was_found_already_is_left_out_from_then_on() -> None:
    ground = FakeGround(dies_of_phb_beside_core)
    first = play_round(replace(ORDER, examples=300), ground).finding
    assert first is not None
    behind = play_round(replace(ORDER, examples=40, found=(first.violation,)), ground)
    assert behind.finding is None
    assert not behind.again


def test_an_error_of_our_own_is_no_violation() -> None:
    def fails(steps: list[Step], seen: Seen) -> Seen:
        raise RuntimeError("ours")

    with pytest.raises(RuntimeError, match="ours"):
        play_round(ORDER, FakeGround(fails))


@pytest.mark.parametrize(
    ("seen", "text"),
    [
        (Seen(refusal="no"), "expected to be accepted, reply: no"),
        (Seen(), "connectors that got a device: expected 1, observed 0"),
        (Seen(attached=(0x10000001,), events=(("DEVICE_DELETED", "core1"),)), "came without a cause"),
        (Seen(attached=(0x10000001,), events=(("MEM_UNPLUG_ERROR", "core1"),)), "MEM_UNPLUG_ERROR: expected x0, observed x1"),
        (Seen(end="QEMU was killed by SIGABRT"), "killed by SIGABRT"),
    ],
)
def test_each_thing_that_is_not_as_the_model_says_is_a_violation(seen: Seen, text: str) -> None:
    assert text in broken([CORE], lambda *_: seen).text


@pytest.fixture(autouse=True)
def no_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """The fake has nothing under way."""
    monkeypatch.setattr(observe, "SETTLE_SECONDS", 0.0)


def test_an_event_that_never_comes_is_a_violation_at_the_end() -> None:
    text = broken([CORE, UNPLUG], lambda _, seen: replace(seen, events=())).text
    assert text == "DEVICE_DELETED never came for a core"


@pytest.mark.parametrize(
    ("came", "gone", "same"),
    [
        ([Kind.CORE, Kind.CORE], [1], True),
        ([Kind.CORE, Kind.CORE], [0], False),
        ([Kind.CORE, Kind.DIMM, Kind.PHB], [0], True),
        ([Kind.PHB, Kind.PHB], [0], False),
        ([Kind.PHB, Kind.PCI], [0], False),
        ([Kind.PCI, Kind.PHB], [1], True),
        ([Kind.PHB, Kind.PCI], [], True),
    ],
)
def test_another_qemu_counts_anew(came: list[Kind], gone: list[int], same: bool) -> None:
    """PCI devices are bridges here."""
    instances = Instances()
    for number, kind in enumerate(came):
        instances.add(f"device{number}", kind, bridge=kind is Kind.PCI)
    instances.add("card", Kind.PCI)
    for number in gone:
        instances.remove(f"device{number}")
    assert instances.same_elsewhere is same


def test_the_states_of_connectors_and_the_devices_are_compared_at_the_end() -> None:
    class Other(FakeGround):
        def world(self) -> FakeWorld:
            return FakeWorld(facts=replace(FACTS, features=HEARS_ALL - {"core-refusal-heard", "DEVICE_UNPLUG_GUEST_ERROR"}))

    deaf: list[Step] = [CORE, RESET, UNPLUG, Call(Transition.UNISOLATE, "core1")]
    found = play(deaf, Other())
    assert found is not None
    assert found.text.startswith("DEVICE_UNPLUG_GUEST_ERROR: expected x1, observed x0")
    world = FakeWorld()
    one = History(world)
    one.do(CORE)
    one.model.devices.clear()
    with pytest.raises(Violated, match=r"QEMU's devices: none should be there, \['core1'\] should not"):
        one.check()


def test_a_machine_that_ends_when_it_is_looked_at_is_a_violation() -> None:
    class Ends(FakeWorld):
        def inventory(self) -> frozenset[str]:
            raise WorldEnded("QEMU was killed by SIGSEGV")

    one = History(Ends())
    one.do(CORE)
    with pytest.raises(Violated) as told:
        one.finish()
    assert told.value.violation.ended
    assert told.value.violation.signature == "the whole state: QEMU was killed by SIGSEGV"


def test_a_call_for_what_never_was_there_is_left_out() -> None:
    one = History(FakeWorld())
    one.do(Call(Transition.ISOLATE, "core1"))
    assert not one.done


def test_a_dimm_of_which_the_guest_gave_back_a_part_stays_until_all_has_gone() -> None:
    one = History(FakeWorld())
    for step in (MEMORY, DIMM, RESET, Command("device_del", {"id": "dimm1"})):
        one.do(step)
    for part in (0, 1):
        assert "dimm1" in one.model.devices
        one.do(Call(Transition.ISOLATE, "dimm1", part))
        one.do(Call(Transition.SET_UNUSABLE, "dimm1", part))
    one.finish()
    assert not one.model.devices


def test_a_phb_takes_what_is_below_it_along() -> None:
    one = History(FakeWorld())
    card = {"driver": "virtio-rng-pci", "multifunction": True}
    for step in (
        PHB,
        Command("device_add", {"driver": "pci-bridge", "id": "bridge1", "bus": "phb1.0", "addr": "2.0", "chassis_nr": 1}),
        Command("device_add", {**card, "id": "pci1", "bus": "bridge1", "addr": "3.0"}),
        Command("device_add", {**card, "id": "pci2", "bus": "pci.0", "addr": "3.0"}),
        Command("device_del", {"id": "phb1"}),
    ):
        one.do(step)
    assert one.done[-1].expected.deleted == ["phb1", "bridge1", "pci1"]
    assert list(one.model.devices) == ["pci2"]


def test_function_0_takes_the_others_of_its_slot_along_and_comes_last() -> None:
    one = History(FakeWorld())
    for number, function in ((1, 1), (2, 0), (3, 2)):
        place = {"bus": "pci.0", "addr": f"4.{function}", "multifunction": True}
        one.do(Command("device_add", {"driver": "virtio-rng-pci", "id": f"pci{number}", **place}))
    assert [done.expected.refused for done in one.done] == [False, False, True]
    assert one.model.waiting == 2
    one.do(Command("device_del", {"id": "pci2"}))
    assert sorted(one.done[-1].expected.deleted) == ["pci1", "pci2"]


def twins(one: Bug, other: Bug) -> Violation:
    both = Twins(FakeWorld(one), FakeWorld(other), ("7.2", "11.1"))
    with pytest.raises(Violated) as told:
        for step in (CORE, UNPLUG, PHB):
            both.do(step)
    return told.value.violation


def test_what_one_build_does_and_the_other_does_not_is_a_difference() -> None:
    assert twins(sound, dies_of_phb_after_core).text == "7.2: as promised; 11.1: QEMU was killed by SIGSEGV"
    assert twins(dies_of_phb_after_core, sound).text == "7.2: QEMU was killed by SIGSEGV; 11.1: as promised"


def test_what_both_builds_do_otherwise_than_promised_is_no_difference() -> None:
    assert twins(dies_of_phb_after_core, dies_of_phb_after_core).defect == Twins.ALIKE


def test_steps_travel_as_json() -> None:
    steps = (
        CORE,
        Call(Transition.UNISOLATE, "core1", 2),
        OddCall((9001, 5, 99)),
        TakeEvents(),
        Move(),
        Move(stored=True),
        Aside(UNPLUG),
    )
    assert from_json(as_json(steps)) == steps


@pytest.mark.parametrize(
    "data", [3, [{"do": "it"}], [{"rtas": "dance", "device": "core1", "part": 0}], [{"aside": {"migrate": "all"}}]]
)
def test_what_is_no_history_is_told_as_such(data: object) -> None:
    with pytest.raises(ConfigError):
        from_json(data)


def test_what_was_found_is_written_with_a_script_and_a_test_that_are_python(tmp_path: Path) -> None:
    steps: list[Step] = [
        MEMORY,
        DIMM,
        RESET,
        OddCall((9001, 5, 99)),
        TakeEvents(),
        Call(Transition.CONFIGURE, "dimm1", 1),
        Move(),
        Move(stored=True),
        CORE,
        Aside(Command("device_del", {"id": "dimm1"})),
        UNPLUG,
        PHB,
    ]
    violation = broken(steps, dies_of_phb_after_core)
    found = shrink(violation, lambda _: None, Deadline(0))
    text = findings.write(tmp_path / "violation-1", found, SUBJECT, "Found with seed 1.")
    assert "QEMU was killed by SIGSEGV" in text
    assert "0 of 1 times" in text
    for name in ("violation_1.py", "test_violation_1.py"):
        ast.parse((tmp_path / "violation-1" / name).read_text(encoding="utf-8"))
    assert "\"device_del\", {'id': 'core1'}" in (tmp_path / "violation-1/violation_1.py").read_text(encoding="utf-8")
    report = (tmp_path / "violation-1/report.txt").read_text(encoding="utf-8")
    assert "fatal=True" in report
    assert findings.load(tmp_path / "violation-1/history.json") == (tuple(steps), violation.signature)


def test_a_machine_that_moves_to_another_build_does_so_in_the_script_and_in_the_test(tmp_path: Path) -> None:
    found = shrink(broken([Move(), Move(stored=True), CORE, UNPLUG, PHB], dies_of_phb_after_core), lambda _: None, Deadline(0))
    findings.write(
        tmp_path / "violation-1", found, replace(SUBJECT, onward=Onward("12.0", ("newer-qemu",), "QEMU 12.0.0", (12, 0, 0))), ""
    )
    script, test = (
        (tmp_path / "violation-1" / name).read_text(encoding="utf-8") for name in ("violation_1.py", "test_violation_1.py")
    )
    assert "ONWARD = ['newer-qemu']\n" in script
    assert "machine.migrate(spapr_cell.other_build('12.0'))\n" in test
    assert "machine.migrate(spapr_cell.other_build('12.0'), through=Path(directory, \"state\"))\n" in test
    ast.parse(script)
    ast.parse(test)


def test_where_a_machine_broke_that_had_moved_the_row_begins_with_the_newer_build(tmp_path: Path) -> None:
    onward = replace(SUBJECT, onward=Onward("12.0", ("newer-qemu",), "QEMU 12.0.0", (12, 0, 0)))
    histories: list[tuple[list[Step], str]] = [([CORE, UNPLUG, PHB], "11.1.3"), ([CORE, UNPLUG, Move(), PHB], "12.0.0")]
    for number, (steps, seen) in enumerate(histories):
        found = shrink(broken(steps, dies_of_phb_after_core), lambda _: None, Deadline(0))
        text = findings.write(tmp_path / f"violation-{number}", found, onward, "")
        assert text.startswith("QEMU 11.1.3, moving to QEMU 12.0.0, with tcg")
        report = (tmp_path / f"violation-{number}/report.txt").read_text(encoding="utf-8")
        assert f'seen="QEMU {seen}"' in report


@pytest.mark.parametrize(("bugs", "steps"), [((sound, dies_of_phb_after_core), 3), ((dies_of_phb_after_core, sound), 4)])
def test_of_two_builds_the_timeline_is_that_of_the_one_that_broke(tmp_path: Path, bugs: tuple[Bug, Bug], steps: int) -> None:
    one, other = map(FakeWorld, bugs)
    # Only the first one has done it, so that the two can be told apart.
    one.do(TakeEvents(), None)
    scene = FirmwareScene(one, other, ("7.2", "11.1"))
    with pytest.raises(Violated):
        for step in (CORE, UNPLUG, PHB):
            scene.play.do(step)
    scene.write(tmp_path / "timeline.jsonl", tmp_path / "timeline.txt")
    assert (tmp_path / "timeline.jsonl").read_text(encoding="utf-8") == f"{steps}\n"


def test_the_model_goes_by_what_the_other_build_does_once_the_machine_has_moved() -> None:
    model = Model(replace(FACTS, features=frozenset({"here"}), onward=frozenset({"there"})))
    assert model.facts.features == {"here"}
    for _ in range(2):
        model.take(Move())
        assert model.facts.features == {"there"}


def test_a_machine_that_moves_on_has_the_newest_type_that_both_builds_have() -> None:
    def build(*machines: str) -> Any:
        return SimpleNamespace(machines=frozenset(machines), version_text="QEMU")

    here = build("pseries", "pseries-9.2", "pseries-10.0", "pseries-2.12-sxxm")
    shape = shape_for(here, "tcg", build("pseries", "pseries-9.2", "pseries-10.0", "pseries-11.1"))
    assert (shape["machine"], shape["cpu"]) == ("pseries-10.0", "power9_v2.0")
    with pytest.raises(ConfigError, match=r"no machine type like pseries-7\.2 in common"):
        shape_for(here, "tcg", build("pseries", "pseries-11.1"))


def test_a_machine_that_would_not_be_what_it_was_does_not_move() -> None:
    """Once a core has gone before one that came later, or where a part of a DIMM has (known defects)."""
    later = Command("device_add", {"driver": FACTS.core_type, "id": "core2", "core-id": 2})
    give = [Call(Transition.ISOLATE, "dimm1"), Call(Transition.SET_UNUSABLE, "dimm1")]
    part = [MEMORY, DIMM, RESET, Command("device_del", {"id": "dimm1"}), *give]
    for steps in ([CORE, later, UNPLUG], part):
        played = FakeGround().scene().play
        history: list[Step] = [Move(), *steps, Move()]
        for step in history:
            played.do(step)
        assert [done.step for done in played.done] == [Move(), *steps]
    played = FakeGround().scene().play
    for step in (CORE, UNPLUG, later, Move()):
        played.do(step)
    assert len(played.done) == 4


def _orders() -> list[Order]:
    """More than are needed: what hypothesis draws depends on the seed, and on the numbers in all modules that were imported by then."""
    return [Order(seed=1, number=number, examples=60) for number in range(1, 41)]


def test_a_refusal_after_a_move_is_met_and_left_out_where_it_is_known() -> None:
    """The deepest of the known defects: four rules in a row lead to it."""
    orders = _orders()
    ground = FakeGround(dies_of_a_refusal_after_a_move)
    assert any(play_round(order, ground).finding for order in orders)
    avoid = frozenset({Avoid.REFUSAL_AFTER_MOVE})
    assert not any(play_round(replace(order, avoid=avoid), ground).finding for order in orders[:4])


def test_a_phb_that_comes_again_is_left_out_where_it_is_known() -> None:
    orders = _orders()
    ground = FakeGround(dies_of_a_phb_that_comes_again)
    assert any(play_round(order, ground).finding for order in orders)
    avoid = frozenset({Avoid.PHB_AGAIN})
    assert not any(play_round(replace(order, avoid=avoid), ground).finding for order in orders[:4])


def test_a_move_with_a_card_is_left_out_where_it_is_known_to_fail() -> None:
    orders = _orders()
    ground = FakeGround(has_no_move_with_a_card)
    found = next(outcome.finding for order in orders if (outcome := play_round(order, ground)).finding)
    assert any(name == "virtio-queue-size" and looks(found.violation) for name, looks, _ in known._KNOWN)
    avoid = frozenset({Avoid.CARD_IN_A_MOVE})
    assert not any(play_round(replace(order, avoid=avoid), ground).finding for order in orders[:4])


def _looks_like(name: str, text: str, *steps: Step) -> bool:
    done = tuple(Done(step, None, Expected(), "") for step in steps)
    looks = next(looks for known_name, looks, _ in known._KNOWN if known_name == name)
    return looks(Violation(done, text, "", ended=True))


@pytest.mark.parametrize(("driver", "known_"), [("pc-dimm", True), ("nvdimm", False)])
@pytest.mark.parametrize("by", [lambda command: command, Aside], ids=["monitor", "other monitor"])
def test_the_death_by_a_dimm_is_not_that_by_an_nvdimm(driver: str, known_: bool, by: Any) -> None:
    """One assertion, two defects: a QEMU that asks for NVDIMMs went unnoticed for it (``nvdimm-asked`` of the mutants)."""
    added = Command("device_add", {"driver": driver, "id": "one", "memdev": "memory1"})
    asked = by(Command("device_del", {"id": "/machine/peripheral/one"}))
    text = "spapr_drc_unplug_request: assertion failed: (drc->dev)"
    assert _looks_like("dimm-part-refused", text, MEMORY, added, asked) is known_
    assert not _looks_like("dimm-part-refused", text, MEMORY, added, asked, RESET)


def test_the_death_by_a_refusal_after_a_move_needs_a_move() -> None:
    text = "spapr_memory_unplug_rollback: assertion failed: (ds)"
    assert _looks_like("dimm-refused-after-migration", text, MEMORY, DIMM, Move(), RESET)
    assert not _looks_like("dimm-refused-after-migration", text, MEMORY, DIMM, RESET)


def test_a_pending_dimm_can_be_asked_for_once_more_after_a_move_and_a_pending_phb_cannot() -> None:
    played = FakeGround().scene().play
    dimm, phb = (Command("device_del", {"id": ident}) for ident in ("dimm1", "phb1"))
    steps: list[Step] = [MEMORY, DIMM, PHB, RESET, dimm, phb, dimm, phb, Move(), dimm, phb, Aside(dimm), TakeEvents()]
    for step in steps:
        played.do(step)
    played.finish()
    refused = [done.expected.refused for done in played.done]
    assert refused == [False] * 6 + [True, True, False, False, True, True, False]
    assert played.done[-1].expected.count == 3


def test_a_file_that_is_no_history_is_told_as_such(tmp_path: Path) -> None:
    (tmp_path / "history.json").write_text("[]", encoding="utf-8")
    with pytest.raises(ConfigError, match="is no history of `spapr explore`"):
        findings.load(tmp_path / "history.json")


@pytest.mark.parametrize("text", ["{", "[]", '{"breaks": "x", "steps": [{"dance": 1}]}', '{"breaks": "x", "steps": 3}', ""])
def test_a_bad_file_in_the_store_is_named_and_left_out(tmp_path: Path, text: str) -> None:
    store = tmp_path / "store"
    findings.save(store / "b.json", [CORE], "it broke")
    (store / "a.json").write_text(text, encoding="utf-8")
    one = campaign(tmp_path)
    orders = one.orders()
    assert next(orders).steps == (CORE,)
    assert next(orders).steps is None
    [skipped] = one.skipped
    assert skipped.startswith(f"{store / 'a.json'} is no history of `spapr explore`: ")


def test_a_history_is_stored_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Path, text: str, **_: Any) -> int:
        self.write_bytes(text[:9].encode())
        raise OSError(errno.ENOSPC, "no space")

    findings.save(tmp_path / "a.json", [CORE], "it broke")
    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", full)
        for name in ("a.json", "b.json"):
            with pytest.raises(OSError, match="no space"):
                findings.save(tmp_path / name, [UNPLUG], "it broke")
    assert list(findings.stored(tmp_path)) == [tmp_path / "a.json"]
    assert findings.load(tmp_path / "a.json") == ((CORE,), "it broke")


def test_what_breaks_without_any_step_is_played_again_as_such(tmp_path: Path) -> None:
    class Ends(FakeWorld):
        def inventory(self) -> frozenset[str]:
            raise WorldEnded("QEMU was killed by SIGSEGV")

    class Ground(FakeGround):
        def world(self) -> FakeWorld:
            return Ends()

    first = campaign(tmp_path)
    found = next(outcome.finding for order in first.orders() if (outcome := play_round(order, Ground())).finding)
    assert found.violation.steps == ()
    first.take(Outcome(ORDER, finding=found))
    again = play_round(next(campaign(tmp_path).orders()), Ground())
    assert again.histories == 3
    assert again.finding is not None


def test_a_campaign_begins_with_what_was_found_before_and_goes_on_behind_it(tmp_path: Path) -> None:
    ground = FakeGround(dies_of_phb_beside_core)
    first = campaign(tmp_path)
    found = [first.take(play_round(order, ground)) for order in first.orders()]
    [news] = [one for one in found if one is not None]
    assert first.histories > 60
    second = campaign(tmp_path)
    orders = second.orders()
    again = second.take(play_round(next(orders), ground))
    assert again is not None
    assert again.violation.steps == news.violation.steps
    assert [one.steps for one in next(orders).found] == [news.violation.steps]


def test_a_guided_campaign_asks_for_what_was_not_reached(tmp_path: Path) -> None:
    one = replace(campaign(tmp_path), guided=True)
    orders = one.orders()
    order = next(orders)
    one.take(Outcome(order, driven={"CPU": {"configured": {"unplug": 1}}}))
    assert len(order.wanted - next(orders).wanted) == 1


def test_a_guided_search_reaches_more_with_as_many_histories(tmp_path: Path) -> None:
    def reached(*, guided: bool) -> int:
        seen = set()

        class Watched(FakeWorld):
            def do(self, step: Step, index: int | None) -> Seen:
                if index is not None and isinstance(step, Call):
                    seen.add((class_of(index), self._model.state(index), step.transition))
                return super().do(step, index)

        class Ground(FakeGround):
            def world(self) -> FakeWorld:
                return Watched()

        wanted, found = possible(HEARS_ALL) if guided else frozenset(), 0
        # One row of histories alone is chance.
        for number in range(1, 6):
            play_round(Order(seed=1, number=number, examples=20, wanted=wanted), Ground())
            found += len(seen & possible(HEARS_ALL))
            seen.clear()
        return found

    assert reached(guided=True) > 1.2 * reached(guided=False)


def campaign(tmp_path: Path) -> Campaign:
    return Campaign(1, Deadline(600), 100, guided=False, features=HEARS_ALL, store=tmp_path / "store")
