"""Contracts: data, choice of the row, and that every promise can fail."""

from __future__ import annotations

from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any

import pytest

from ci.contracts.facts import kept as keeping
from ci.contracts.generations import LINUXES, QEMUS, of, release
from ci.contracts.replay import OnRecord, judge, on_record
from pytest_spapr.errors import ConfigError
from pytest_spapr.hotplug.attempt import Views
from pytest_spapr.hotplug.contract import Contract
from pytest_spapr.hotplug.outcome import Kind, Outcome, Presence, Silence
from pytest_spapr.hotplug.rows import Row, packaged_rows, read_rows, version
from pytest_spapr.qemu.behaviour import BEHAVIOURS

QEMU_7_2 = release(7, 2)
QEMU_11_1 = release(11, 1)
LINUX_6_1 = "6.1.0-50-powerpc64le"
ROWS = packaged_rows()
GOOD = {
    "kind": "core",
    "situation": "x",
    "outcome": "removed",
    "asked": True,
    "qemu": "absent",
    "guest": "absent",
    "source": "s",
}


def row_name(row: Row) -> str:
    bounds = (*sorted(row.needs), *(f"no {name}" for name in sorted(row.lacks)), row.kernel, row.qemu)
    return f"{row.subject[0]}-{row.subject[1]}-{','.join(filter(None, bounds)) or 'any'}"


@pytest.mark.parametrize("kernel", LINUXES)
@pytest.mark.parametrize("qemu", QEMUS)
def test_exactly_one_row_fits_each_situation(qemu: str, kernel: str) -> None:
    contract = Contract(QEMUS[qemu], kernel)
    for kind, situation in {row.subject for row in ROWS}:
        assert contract.expect(kind, situation).situation == situation


def test_every_row_speaks_of_some_release_or_of_a_patched_one() -> None:
    """A row that fits nothing would never be held against anything."""
    assert [row_name(row) for row in ROWS if of(row) is None] == []


@pytest.mark.parametrize("one", on_record(), ids=lambda one: f"{one.attempt.kind}-{one.situation}-{one.qemu}-{one.linux}")
def test_an_attempt_on_record_is_as_promised(one: OnRecord) -> None:
    """What was seen live, or read where it was written, on each generation: it stands for itself, and the rows must agree with it."""
    promised = one.contract().expect(one.attempt.kind, one.situation)
    assert promised.differences(one.attempt) == []


def test_there_is_an_attempt_on_record_for_every_fact_of_every_row() -> None:
    """So that no fact can be changed without a test that fails. A new row needs a line in attempts.jsonl."""
    verdicts = judge(ROWS, {}, on_record())
    assert {row_name(verdict.row): verdict.unnoticed for verdict in verdicts if verdict.unnoticed} == {}


@pytest.mark.parametrize(
    ("qemu", "outcome", "waiting"),
    [
        ("5.2", Outcome.PENDING, True),
        ("6.0", Outcome.PENDING, True),
        ("6.1", Outcome.REVERTED, False),
        ("6.2", Outcome.REFUSED, False),
        ("11.1", Outcome.REFUSED, False),
        ("99.0", Outcome.REFUSED, False),
    ],
)
def test_a_refused_core_through_the_ages(qemu: str, outcome: Outcome, waiting: bool) -> None:
    promised = Contract(QEMUS[qemu], LINUX_6_1).expect(Kind.CORE, "refusal: last online CPU")
    assert (promised.outcome, promised.waiting) == (outcome, waiting)


@pytest.mark.parametrize(
    ("qemu", "kernel", "events"),
    [
        ("5.2", LINUX_6_1, []),
        ("6.0", LINUX_6_1, ["MEM_UNPLUG_ERROR x1"]),
        ("6.1", LINUX_6_1, ["MEM_UNPLUG_ERROR x1"]),
        ("7.2", LINUX_6_1, ["MEM_UNPLUG_ERROR x1", "DEVICE_UNPLUG_GUEST_ERROR x2"]),
        ("7.2", "5.10", ["MEM_UNPLUG_ERROR x1", "DEVICE_UNPLUG_GUEST_ERROR x1"]),
        ("9.1", LINUX_6_1, ["DEVICE_UNPLUG_GUEST_ERROR x2"]),
        ("11.1", "5.10", ["DEVICE_UNPLUG_GUEST_ERROR x1"]),
    ],
)
def test_a_refused_dimm_through_the_ages(qemu: str, kernel: str, events: list[str]) -> None:
    assert list(map(str, Contract(QEMUS[qemu], kernel).expect(Kind.DIMM, "refusal: later LMB").events)) == events


@pytest.mark.parametrize("row", ROWS, ids=row_name)
def test_a_row_accepts_what_it_promises(row: Row) -> None:
    assert keeping(row.expectation) == row.expectation


def other(value: Any) -> Any:
    """Another member of the same enumeration."""
    return next(member for member in type(value) if member is not value)


@pytest.mark.parametrize("row", ROWS, ids=row_name)
def test_every_fact_of_a_row_can_fail(row: Row) -> None:
    promised = row.expectation
    kept = keeping(promised)
    unpromised_view = next(view for view in Presence if view not in promised.guest)
    stray = {"event": "ACPI_DEVICE_OST", "data": {"device": kept.device}}
    broken = {
        "outcome": replace(kept, outcome=other(kept.outcome)),
        "cause": replace(kept, cause=Silence.STILL_WORKING),
        "guest asked": replace(kept, asked=not kept.asked),
        "reply": replace(kept, reply="Something else"),
        "QEMU's view": replace(kept, views=Views(other(promised.qemu), promised.guest[0])),
        "the guest's view": replace(kept, views=Views(promised.qemu, unpromised_view)),
        "QEMU waits for the guest": replace(kept, waiting=not kept.waiting),
        "events": replace(kept, events=(*kept.events, stray)),
    }
    for fact, attempt in broken.items():
        assert attempt != promised
        assert any(line.startswith(fact) for line in promised.differences(attempt)), fact
    for rule in promised.events:
        missing = replace(kept, events=tuple(event for event in kept.events if event["event"] != rule.name))
        assert missing != promised
        event = {"event": rule.name, "data": {"device": kept.device}}
        assert replace(kept, events=(*missing.events, *[event] * (rule.most + 1))) != promised


def test_only_what_is_pending_is_waited_for_unless_a_row_says_so() -> None:
    contract = Contract(QEMU_11_1, LINUX_6_1)
    assert contract.expect(Kind.DIMM, "silence: first LMB refused").waiting
    assert not contract.expect(Kind.CORE, "refusal: last online CPU").waiting
    assert contract.expect(Kind.DIMM, "repeat while pending").waiting


def test_a_qemu_that_cannot_say_whether_it_waits_breaks_no_promise() -> None:
    promised = Contract(QEMU_11_1, LINUX_6_1).expect(Kind.CORE, "removal")
    assert replace(keeping(promised), waiting=None) == promised


@pytest.mark.parametrize(
    ("reply", "fits"),
    [
        ("core1 (no. 3) waits", True),
        ("core1 (no. 14) waits", True),
        ("core1 (no. x) waits", False),
        ("core2 (no. 3) waits", False),
    ],
)
def test_a_reply_may_have_numbers_of_its_own(reply: str, fits: bool) -> None:
    data = {"kind": "core", "situation": "x", "outcome": "rejected", "asked": False, "qemu": "present", "guest": "present"}
    promised = Row.parse(data | {"source": "s", "reply": "{id} (no. {number}) waits"}).expectation
    assert (replace(keeping(promised, "core1"), reply=reply) == promised) is fits


def test_the_order_of_events_is_part_of_the_promise() -> None:
    promised = Contract(QEMU_7_2, LINUX_6_1).expect(Kind.DIMM, "refusal: later LMB")
    kept = keeping(promised)
    assert kept == promised
    assert replace(kept, events=tuple(reversed(kept.events))) != promised


def test_one_refusal_of_a_dimm_is_told_twice() -> None:
    promised = Contract(QEMU_11_1, LINUX_6_1).expect(Kind.DIMM, "refusal: later LMB")
    event = {"event": "DEVICE_UNPLUG_GUEST_ERROR", "data": {"device": "thing1"}}
    for count in range(4):
        assert (replace(keeping(promised), events=(event,) * count) == promised) is (count == 2)


def test_a_version_counts_where_a_row_says_so() -> None:
    def row(outcome: str, bounds: str) -> Row:
        data = {"kind": "core", "situation": "x", "outcome": outcome, "asked": True, "qemu": "absent", "guest": "absent"}
        return Row.parse(data | {"source": "s", "qemu_version": bounds})

    rows = [row("removed", ">=7.2"), row("crashed", ">=6.0,<7.2")]
    assert Contract(frozenset(), LINUX_6_1, rows, qemu=(7, 2, 22)).expect(Kind.CORE, "x").outcome is Outcome.REMOVED
    assert Contract(frozenset(), LINUX_6_1, rows, qemu=(7, 1, 0)).expect(Kind.CORE, "x").outcome is Outcome.CRASHED
    with pytest.raises(ConfigError, match=r"0 contract rows for core 'x' fit this QEMU 5\.2\.0 and kernel 6\.1\.0"):
        Contract(frozenset(), LINUX_6_1, rows, qemu=(5, 2, 0)).expect(Kind.CORE, "x")
    with pytest.raises(ConfigError, match="is not a bound"):
        row("removed", "7.2")


def test_features_and_kernel_choose_the_row() -> None:
    def refusal(features: frozenset[str], kernel: str) -> Outcome:
        return Contract(features, kernel).expect(Kind.CORE, "refusal: last online CPU").outcome

    assert refusal(QEMU_7_2, LINUX_6_1) is Outcome.REFUSED
    assert refusal(QEMU_7_2, "5.10.223") is Outcome.PENDING
    assert refusal(frozenset({"DEVICE_DELETED"}), LINUX_6_1) is Outcome.PENDING


def test_an_unknown_situation_names_those_there_are() -> None:
    with pytest.raises(ConfigError, match=r"no contract speaks of core 'refusal: bad mood'.*removal"):
        Contract(QEMU_7_2, LINUX_6_1).expect(Kind.CORE, "refusal: bad mood")


def test_two_fitting_rows_are_an_error_of_the_data() -> None:
    with pytest.raises(ConfigError, match="2 contract rows"):
        Contract(QEMU_7_2, LINUX_6_1, [ROWS[0], ROWS[0]]).expect(ROWS[0].expectation.kind, ROWS[0].expectation.situation)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"outcome": "gone"}, "'gone' is not a valid Outcome"),
        ({"kind": None}, "None is not a valid Kind"),
        ({"colour": "red"}, "unknown keys: colour"),
        ({"events": [{"nam": "DEVICE_DELETED"}]}, "it has no 'name'"),
        ({"events": [{"name": "DEVICE_DELETED", "mos": 2}]}, "mos"),
        ({"events": [{"name": "DEVICE_DELETED", "least": "1"}]}, "least is '1', expected a number"),
        ({"events": ["DEVICE_DELETED"]}, "contract row .* is not usable"),
        ({"situation": 1}, "situation is 1, expected text"),
        ({"asked": "no"}, "asked is 'no', expected true or false"),
        ({"waiting": 1}, "waiting is 1, expected true or false"),
        ({"reply": 5}, "reply is 5, expected text"),
        ({"guest": []}, "guest is an empty list"),
    ],
)
def test_a_bad_row_is_refused_with_its_fault(change: dict[str, Any], words: str) -> None:
    assert Row.parse(GOOD).expectation.outcome is Outcome.REMOVED
    with pytest.raises(ConfigError, match=words):
        Row.parse(GOOD | change)
    with pytest.raises(ConfigError, match="source"):
        Row.parse({key: value for key, value in GOOD.items() if key != "source"})


class TestUsersRows:
    """They stand above those of the package."""

    ROW = """
[[row]]
kind = "core"
situation = "{situation}"
needs = {needs}
outcome = "crashed"
asked = true
qemu = "unknown"
guest = "unknown"
source = "mine"
"""

    def contract(self, path: Path, *rows: tuple[str, str]) -> Contract:
        path.write_text("".join(self.ROW.format(situation=situation, needs=needs) for situation, needs in rows))
        return Contract(QEMU_11_1, LINUX_6_1, above=read_rows(path))

    def test_replace_the_packages_where_they_fit(self, tmp_path: Path) -> None:
        mine = self.contract(tmp_path / "mine.toml", ("removal", "[]"), ("rejection: boot core", '["unplug-timer"]'))
        assert mine.expect(Kind.CORE, "removal").source == "mine"
        assert mine.expect(Kind.CORE, "rejection: boot core").outcome is Outcome.REJECTED
        assert mine.expect(Kind.DIMM, "removal").outcome is Outcome.REMOVED

    def test_may_be_of_a_situation_that_the_package_does_not_know(self, tmp_path: Path) -> None:
        mine = self.contract(tmp_path / "mine.toml", ("full moon", "[]"))
        assert mine.expect(Kind.CORE, "full moon").source == "mine"
        with pytest.raises(ConfigError, match=r"there are.*'full moon'.*'removal'"):
            mine.expect(Kind.CORE, "new moon")

    def test_must_not_contradict_each_other(self, tmp_path: Path) -> None:
        mine = self.contract(tmp_path / "mine.toml", ("removal", "[]"), ("removal", "[]"))
        with pytest.raises(ConfigError, match="2 contract rows for core 'removal' fit"):
            mine.expect(Kind.CORE, "removal")

    @pytest.mark.parametrize(
        ("text", "words"),
        [
            ("[[row]", "mine.toml is not TOML"),
            ("", "mine.toml has no contract row: expected tables that begin with"),
            ("[row]\nkind = 'core'", "expected nothing but tables that begin with"),
            ("[[rows]]\nkind = 'core'", "found rows"),
            ("[[row]]\nkind = 'core'", "mine.toml: contract row .* is not usable: it has no 'outcome'"),
            ("[[row]]\nkernel = 6.1", "6.1 is not bounds"),
            ("[[row]]\nneeds = 'MEM_UNPLUG_ERROR'", "needs is 'MEM_UNPLUG_ERROR', expected a list of names"),
            ("[[row]]\nlacks = [1]", r"lacks is \[1\], expected a list of names"),
        ],
    )
    def test_that_cannot_be_used_are_an_error(self, tmp_path: Path, text: str, words: str) -> None:
        path = tmp_path / "mine.toml"
        path.write_text(text)
        with pytest.raises(ConfigError, match=words):
            read_rows(path)

    def test_that_are_not_there_are_an_error(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match=r"mine\.toml cannot be read: No such file"):
            read_rows(tmp_path / "mine.toml")


def test_kernel_bounds() -> None:
    def fits(bounds: str, kernel: str) -> bool:
        return Row.parse(GOOD | {"kernel": bounds}).fits(frozenset(), version(kernel), (11, 1))

    assert fits(">=5.14", "5.14.0")
    assert fits(">=5.14", "6.1.0-50-powerpc64le")
    assert not fits(">=5.14", "5.13.19")
    assert fits(">=5.13,<5.14", "5.13.19")
    with pytest.raises(ConfigError, match="is not a bound"):
        fits("5.14", "6.1")
    with pytest.raises(ConfigError, match="is not a kernel release"):
        version("vmlinux")


def test_every_situation_and_every_feature_is_told() -> None:
    told = (resources.files("pytest_spapr.hotplug") / "contracts" / "README.md").read_text(encoding="utf-8")
    situations = {row.subject[1] for row in ROWS}
    told_by_kind = {name for name in situations if name.startswith("outlasted: ")}
    assert [name for name in sorted({*situations - told_by_kind, *BEHAVIOURS}) if f"`{name}`" not in told] == []


def test_a_feature_that_a_row_names_is_one_that_a_probe_can_find() -> None:
    events = {"DEVICE_UNPLUG_GUEST_ERROR", "MEM_UNPLUG_ERROR"}
    named = {name for row in ROWS for name in (*row.needs, *row.lacks)}
    assert named - BEHAVIOURS.keys() <= events
