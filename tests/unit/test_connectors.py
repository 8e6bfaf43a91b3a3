"""What connectors went through: the model, its replay from traces, records of runs, and the command's tables."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pytest_spapr import cli
from pytest_spapr.coverage.connectors import merge, read, total, write
from pytest_spapr.coverage.replay import Driven, driven
from pytest_spapr.errors import ConfigError
from pytest_spapr.hotplug.drc_model import MACHINES, DrcClass, State, Transition
from pytest_spapr.qemu.trace import parse_drc_event
from pytest_spapr.timeline import Lane, Timeline

HEARS_ALL = frozenset({"core-refusal-heard", "dimm-refusal-heard", "dimm-reconfigure-heard"})
CORE, CARD, LMB, NEXT_LMB, PHB = "0x10000001", "0x40000008", "0x80000004", "0x80000005", "0x20000005"
WATCH = "-> trace-event-set-state"

#: How the guest takes a device, and how it gives it back.
TAKES = ("allocation 1", "isolation 1", "configured")
GIVES = ("isolation 0", "allocation 0", "allocation_finalizing")


def traced(*lines: str, features: frozenset[str] = HEARS_ALL) -> Driven:
    """Return what was driven, of commands (``-> device_add``) and traces (``0x10000001 attach``, ``... isolation 1``)."""
    timeline = Timeline()
    for line in lines:
        first, event, *state = line.split()
        if first == "step":
            timeline.step(event)
        elif first == "->":
            timeline.record(Lane.QMP, line, {"execute": event})
        else:
            name = {"isolation": "set_isolation_state", "allocation": "set_allocation_state"}.get(event, event)
            name = {"configured": "set_configured", "allocation_finalizing": "set_allocation_state_finalizing"}.get(name, name)
            written = f"spapr_drc_{name} drc: {first}" + "".join(f", state: 0x{number}" for number in state)
            timeline.record(Lane.DRC, written, parse_drc_event(written))
    return driven(timeline.since(), features)


def of(drc: str, *events: str) -> list[str]:
    return [f"{drc} {event}" for event in events]


@pytest.mark.parametrize("drc_class", DrcClass)
def test_each_state_of_the_model_can_be_reached_and_left(drc_class: DrcClass) -> None:
    machine = MACHINES[drc_class]
    reached: set[State] = set()
    found = {State.EMPTY}
    while more := found - reached:
        reached |= more
        found |= {after for state in more for after in machine[state].values()}
    assert reached == set(machine)
    if drc_class is not DrcClass.PMEM:
        assert State.EMPTY in {after for state, table in machine.items() if state is not State.EMPTY for after in table.values()}
    assert all(Transition.RESET in table for state, table in machine.items() if state is not State.EMPTY)


def test_a_core_comes_and_goes() -> None:
    lines = of(CORE, "attach", *TAKES, "unplug_request", "awaiting_quiesce", *GIVES, "attach")
    found = traced(WATCH, *lines)
    assert found == {
        "CPU": {
            "empty": {"attach": 2},
            "unusable": {"set usable": 1},
            "available": {"unisolate": 1},
            "unisolated": {"configure": 1},
            "configured": {"unplug": 1},
            "configured, pending": {"isolate": 1},
            "available, pending": {"set unusable": 1},
        }
    }
    assert {type(name) for states in found.values() for state, table in states.items() for name in (state, *table)} == {str}


def test_a_card_has_a_machine_of_its_own() -> None:
    lines = of(CARD, "attach", "isolation 1", "configured", "unplug_request", "awaiting_quiesce", "isolation 0")
    found = traced(WATCH, *lines, f"{CARD} set_isolation_state_finalizing", f"{CARD} attach")
    assert found["PCI"] == {
        "empty": {"attach": 2},
        "power-on": {"unisolate": 1},
        "unisolated": {"configure": 1},
        "configured": {"unplug": 1},
        "configured, pending": {"isolate": 1},
    }


def test_what_nobody_configured_goes_at_once_and_what_is_pending_by_a_reset() -> None:
    assert traced(WATCH, *of(CORE, "attach", "unplug_request", "attach", "reset", "unplug_request", "reset", "attach")) == {
        "CPU": {
            "empty": {"attach": 3},
            "unusable": {"unplug": 1, "reset": 1},
            "configured": {"unplug": 1},
            "configured, pending": {"reset": 1},
        }
    }


def test_what_was_there_from_the_start_is_ready_and_its_plug_is_none_of_ours() -> None:
    lines = [f"{CORE} attach", WATCH, f"{CORE} reset", f"{CORE} unplug_request"]
    assert traced(*lines) == {"CPU": {"configured": {"reset": 1, "unplug": 1}}}


def test_nothing_counts_that_was_not_watched() -> None:
    assert traced(*of(CORE, "attach", *TAKES)) == {}


def dimm(*events: str) -> list[str]:
    """A DIMM of two LMBs that the guest has, and what happens to the LMBs then."""
    plugged = [*of(LMB, "attach"), *of(NEXT_LMB, "attach"), *of(LMB, *TAKES), *of(NEXT_LMB, *TAKES)]
    asked = [*of(LMB, "unplug_request", "awaiting_quiesce"), *of(NEXT_LMB, "unplug_request", "awaiting_quiesce")]
    return [WATCH, "-> device_add", *plugged, *asked, *events]


@pytest.mark.parametrize(("how", "name"), [("isolation 1", "unisolate"), ("configured", "configure")])
def test_a_refusal_for_one_lmb_is_one_for_its_dimm(how: str, name: str) -> None:
    found = traced(*dimm(f"{LMB} {how}", f"{NEXT_LMB} {how}"))["LMB"]
    assert found["configured, pending"] == {name: 1}
    assert found["configured"] == {"unplug": 2, name: 1}


def test_another_dimm_is_not_refused_with_it() -> None:
    plugged = [WATCH, "-> device_add", *of(LMB, "attach"), "-> device_add", *of(NEXT_LMB, "attach", "reset"), f"{LMB} reset"]
    asked = [*of(LMB, "unplug_request"), *of(NEXT_LMB, "unplug_request"), f"{LMB} isolation 1", f"{NEXT_LMB} isolation 1"]
    assert traced(*plugged, *asked)["LMB"]["configured, pending"] == {"unisolate": 2}


def test_a_qemu_that_hears_no_refusal_goes_on_waiting() -> None:
    lines = of(CORE, "attach", "reset", "unplug_request", "isolation 1", "reset")
    assert traced(WATCH, *lines, features=frozenset())["CPU"]["configured, pending"] == {"unisolate": 1, "reset": 1}
    assert traced(WATCH, *lines)["CPU"]["configured"] == {"unplug": 1, "reset": 1}


def test_an_lmb_that_nobody_asked_for_stays_what_it_is() -> None:
    found = traced(WATCH, *of(LMB, "attach", *TAKES, "isolation 0", "unplug_request"))["LMB"]
    assert found["configured"] == {"isolate": 1, "unplug": 1}


def test_qemu_5_2_has_another_word_for_a_request_and_repeats_it() -> None:
    requested = of(CORE, "attach", *TAKES, "detach", "awaiting_quiesce")
    gives = of(
        CORE, "isolation 0", "set_isolation_state_finalizing", "detach", "awaiting_quiesce", *GIVES[1:], "detach", "attach"
    )
    found = traced(WATCH, *requested, *gives, features=frozenset())["CPU"]
    assert found["configured"] == {"unplug": 1}
    assert found["available, pending"] == {"set unusable": 1}
    assert found["empty"] == {"attach": 2}


def test_a_connector_that_is_made_anew_is_empty() -> None:
    assert traced(WATCH, *of(PHB, "attach", "unrealize", "attach"))["PHB"] == {"empty": {"attach": 2}}


def test_what_migrated_in_is_unknown_until_the_trace_says_more() -> None:
    lines = [WATCH, *of(CORE, "attach", "reset"), "-> migrate-incoming", *of(CORE, "isolation 0", "unplug_request", "reset")]
    assert traced(*lines, f"{CORE} allocation_finalizing", f"{CORE} attach") == {
        "CPU": {"empty": {"attach": 2}, "unusable": {"reset": 1}}
    }


@pytest.mark.parametrize("watched", [True, False])
def test_what_moves_to_another_qemu_stays_what_it_is(watched: bool) -> None:
    here = [WATCH, *of(CORE, "attach", "reset", "unplug_request", "awaiting_quiesce")]
    there = ["step migrate", *of(CORE, "attach"), "-> migrate-incoming", *[WATCH] * watched]
    found = traced(*here, *there, f"{CORE} reset")["CPU"]
    assert found["empty"] == {"attach": 1}
    assert found.get("configured, pending") == ({"reset": 1} if watched else None)


def test_memory_that_is_pending_can_be_asked_for_again_after_a_move() -> None:
    asked = of(LMB, "unplug_request", "awaiting_quiesce")
    lines = [WATCH, *of(LMB, "attach", "reset"), *asked, "step migrate", f"{LMB} attach", "-> migrate-incoming", WATCH, *asked]
    assert traced(*lines)["LMB"]["configured, pending"] == {"unplug": 1}


def test_after_a_move_that_failed_nothing_is_believed() -> None:
    lines = [
        WATCH,
        *of(CORE, "attach", "reset"),
        "step migrate",
        f"{CORE} unplug_request",
        "step migrate",
        WATCH,
        f"{CORE} reset",
    ]
    assert traced(*lines)["CPU"] == {"empty": {"attach": 1}, "unusable": {"reset": 1}}


def test_what_contradicts_the_model_is_counted_and_believed_no_further() -> None:
    found = traced(WATCH, *of(CORE, "attach", "configured", "isolation 0", "attach"))
    assert found == {"CPU": {"empty": {"attach": 2}, "unusable": {"configure": 1}}}
    assert traced(WATCH, *of(CORE, "attach", "unplug_request", "awaiting_quiesce", "isolation 0"))["CPU"].keys() == {
        "empty",
        "unusable",
    }


def test_a_time_limit_is_not_traced_so_that_its_build_does_not_count() -> None:
    assert traced(WATCH, *of(CORE, "attach"), features=HEARS_ALL | {"unplug-timer"}) == {}


def test_records_add_up(tmp_path: Path) -> None:
    one: Driven = {"CPU": {"empty": {"attach": 1}}}
    write(tmp_path / "one", one, "QEMU 7.2")
    write(tmp_path / "two", {"CPU": {"empty": {"attach": 2}}, "PCI": {"empty": {"attach": 1}}}, "QEMU 11.1")
    runs = read(tmp_path)
    assert [run.tested for run in runs] == ["QEMU 7.2", "QEMU 11.1"]
    assert total(runs) == {"CPU": {"empty": {"attach": 3}}, "PCI": {"empty": {"attach": 1}}}
    merge(one, one)
    assert one == {"CPU": {"empty": {"attach": 2}}}


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", '{"format": 2, "tested": "", "drc": {}}', '{"format": 1, "tested": "", "drc": {"CPU": {"empty": 3}}}'],
)
def test_a_damaged_record_is_told(tmp_path: Path, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path, {}, "QEMU 7.2").write_text(text)
    with pytest.raises(ConfigError, match=r"drc-coverage-.*\.json is no record of a run: .+\. Remove it"):
        read(tmp_path)


@pytest.fixture
def records(tmp_path: Path) -> str:
    write(tmp_path, traced(WATCH, *of(CARD, "attach", "unplug_request")), "QEMU 7.2")
    return str(tmp_path)


def test_the_table(records: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["coverage", "--drc", records]) == 0
    told = capsys.readouterr().out
    assert "PCI: 2 of 25 pairs, 2 of the 13 that change the state" in told
    rows = {line[:20].strip(): line.split()[-5:] for line in told.split("PCI:")[1].split("PHB:")[0].splitlines()}
    assert rows["empty"] == ["empty", "1", "-", "-"]
    assert rows["power-on"] == ["power-on", "1", "-", "-", "-"]
    assert told.splitlines()[-1] == "2 of 199 pairs of state and transition"


def test_what_is_missing(records: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["coverage", "--drc", records, "--missing"]) == 0
    lines = capsys.readouterr().out.split("PCI:")[1].split("PHB:")[0].splitlines()
    assert [line.split(maxsplit=1) for line in lines[1:3]] == [
        ["empty", "unisolate, isolate"],
        ["power-on", "unisolate, isolate, reset"],
    ]


@pytest.mark.parametrize(("floor", "status"), [("2", 0), ("3", 1)])
def test_a_floor(records: str, floor: str, status: int) -> None:
    assert cli.main(["coverage", "--drc", records, "--floor", floor]) == status


def test_json(records: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["coverage", "--drc", records, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["reached"], told["known"], told["unknown"]) == (2, 199, [])
    assert told["pairs"]["PCI"]["empty"] == {"attach": 1, "unisolate": 0, "isolate": 0}
    assert [run["tested"] for run in told["runs"]] == ["QEMU 7.2"]


def test_what_the_model_does_not_know_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path, {"CPU": {"empty": {"configure": 2}}, "SLOT": {"empty": {"attach": 1}}}, "QEMU 99")
    assert cli.main(["coverage", "--drc", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-3].startswith("0 of ")
    assert [line.partition("it: ")[2] for line in lines[-2:]] == [
        "CPU, empty: configure, 2 times",
        "SLOT, empty: attach, 1 times",
    ]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--drc", "nonesuch"], "nonesuch is no directory: give the artefacts of runs with --spapr-coverage"),
        (["--drc", "."], "no run left a record in or below .: run the tests with --spapr-coverage"),
        (["--floor", "3"], "--floor is for --drc"),
        (["--drc", ".", "--tests", "."], "--tests has no meaning with --drc"),
        (["--drc", ".", "--floor", "200"], "--floor=200 can never be reached: 199 pairs"),
    ],
)
def test_bad_input_is_status_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["coverage", *arguments]) == 2
    assert says in capsys.readouterr().err
