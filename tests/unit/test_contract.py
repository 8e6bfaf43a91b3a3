"""Contracts: data, choice of the row, and that every promise can fail."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from pytest_spapr.errors import ConfigError
from pytest_spapr.hotplug.attempt import Attempt, Views
from pytest_spapr.hotplug.contract import Contract
from pytest_spapr.hotplug.expectation import Expectation
from pytest_spapr.hotplug.outcome import Kind, Outcome, Presence, Silence
from pytest_spapr.hotplug.rows import Row, packaged_rows, version

QEMU_7_2 = frozenset({"DEVICE_DELETED", "DEVICE_UNPLUG_GUEST_ERROR", "MEM_UNPLUG_ERROR"})
QEMU_11_1 = QEMU_7_2 - {"MEM_UNPLUG_ERROR"}
LINUX_6_1 = "6.1.0-50-powerpc64le"
ROWS = packaged_rows()


def keeping(expectation: Expectation, device: str = "thing1") -> Attempt:
    """An attempt that is just what was promised."""
    events = [{"event": rule.name, "data": {"device": device}} for rule in expectation.events for _ in range(rule.least)]
    return Attempt(
        device=device,
        kind=expectation.kind,
        outcome=expectation.outcome,
        cause=expectation.cause,
        asked=expectation.asked,
        reply=None if expectation.reply is None else expectation.reply.format(id=device, number=14),
        events=tuple(events),
        evidence=("kernel: evidence",),
        views=Views(expectation.qemu, expectation.guest[0]),
        elapsed=0.25,
        began=0,
        ended=9,
        waiting=expectation.waiting,
    )


def row_name(row: Row) -> str:
    return f"{row.expectation.kind}-{row.expectation.situation}-{','.join(sorted(row.needs)) or row.kernel or 'any'}"


@pytest.mark.parametrize(
    ("features", "kernel"), [*product([QEMU_7_2, QEMU_11_1], [LINUX_6_1, "6.12.107+deb13-powerpc64le", "7.2.13"])]
)
def test_exactly_one_row_fits_each_situation(features: frozenset[str], kernel: str) -> None:
    contract = Contract(features, kernel)
    for kind, situation in {(row.expectation.kind, row.expectation.situation) for row in ROWS}:
        assert contract.expect(kind, situation).situation == situation


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


def test_one_refusal_of_a_dimm_may_be_told_twice_but_not_thrice() -> None:
    promised = Contract(QEMU_11_1, LINUX_6_1).expect(Kind.DIMM, "refusal: later LMB")
    event = {"event": "DEVICE_UNPLUG_GUEST_ERROR", "data": {"device": "thing1"}}
    assert replace(keeping(promised), events=(event,) * 2) == promised
    assert replace(keeping(promised), events=(event,) * 3) != promised


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
        ({"events": [{"nam": "DEVICE_DELETED"}]}, "nam"),
    ],
)
def test_a_bad_row_is_refused_with_its_fault(change: dict[str, Any], words: str) -> None:
    good = {
        "kind": "core",
        "situation": "x",
        "outcome": "removed",
        "asked": True,
        "qemu": "absent",
        "guest": "absent",
        "source": "s",
    }
    assert Row.parse(good).expectation.outcome is Outcome.REMOVED
    with pytest.raises(ConfigError, match=words):
        Row.parse(good | change)
    with pytest.raises(ConfigError, match="source"):
        Row.parse({key: value for key, value in good.items() if key != "source"})


def test_kernel_bounds() -> None:
    def fits(bounds: str, kernel: str) -> bool:
        data = {"kind": "core", "situation": "x", "outcome": "removed", "asked": True, "qemu": "absent", "guest": "absent"}
        return Row.parse(data | {"source": "s", "kernel": bounds}).fits(frozenset(), version(kernel), (11, 1))

    assert fits(">=5.14", "5.14.0")
    assert fits(">=5.14", "6.1.0-50-powerpc64le")
    assert not fits(">=5.14", "5.13.19")
    assert fits(">=5.13,<5.14", "5.13.19")
    with pytest.raises(ConfigError, match="is not a bound"):
        fits("5.14", "6.1")
    with pytest.raises(ConfigError, match="is not a kernel release"):
        version("vmlinux")


def test_the_explanation_starts_with_what_differs() -> None:
    promised = Contract(QEMU_7_2, LINUX_6_1).expect(Kind.CORE, "removal")
    attempt = replace(keeping(promised), outcome=Outcome.PENDING, cause=Silence.NOT_DELIVERED, events=())
    lines = promised.explain(attempt)
    assert lines[:4] == [
        "core thing1: not what the contract promises for 'removal'",
        "outcome: expected removed, observed pending",
        "cause: expected nothing, observed not delivered",
        "events: expected DEVICE_DELETED x1, observed x0",
    ]
    assert any(line.startswith("evidence: kernel: evidence") for line in lines)


def test_the_readme_names_every_situation() -> None:
    readme = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    causes = {cause for row in ROWS if (cause := row.expectation.situation.partition(": ")[2])} - {"never configured"}
    assert [cause for cause in sorted(causes) if f"`{cause}`" not in readme] == []
