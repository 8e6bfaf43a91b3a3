"""What libvirt concludes: its rules one by one, and what they make of the attempts on record."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from ci.contracts.replay import OnRecord, on_record
from pytest_spapr.hotplug.attempt import Attempt
from pytest_spapr.hotplug.management import WAIT, Verdict, fails, verdict
from pytest_spapr.hotplug.outcome import Kind, Outcome

REMOVED, REJECTED, TIMED_OUT, UNKNOWN = Verdict.REMOVED, Verdict.REJECTED, Verdict.TIMED_OUT, Verdict.UNKNOWN
EARLY = WAIT - 0.001


def event(name: str, device: str | None = "dimm1") -> dict[str, Any]:
    return {"event": name, "data": {"path": "/machine/peripheral/dimm1"} | ({} if device is None else {"device": device})}


DELETED, REFUSED = event("DEVICE_DELETED"), event("DEVICE_UNPLUG_GUEST_ERROR")


@pytest.mark.parametrize(
    ("events", "elapsed", "expected"),
    [
        ([DELETED], 0.1, REMOVED),
        ([REFUSED], 0.1, REJECTED),
        ([REFUSED, REFUSED], 0.1, REJECTED),
        ([], EARLY, UNKNOWN),
        ([], WAIT, TIMED_OUT),
        # Told after the call had returned.
        ([DELETED], 3600, REMOVED),
        ([REFUSED], 3600, REJECTED),
        ([REFUSED, DELETED], 1, REMOVED),
        ([DELETED, REFUSED], 1, REMOVED),
        # Nothing that libvirt hears.
        ([event("DEVICE_DELETED", None)], WAIT, TIMED_OUT),
        ([event("DEVICE_UNPLUG_GUEST_ERROR", None)], WAIT, TIMED_OUT),
        ([event("MEM_UNPLUG_ERROR")], WAIT, TIMED_OUT),
        ([event("DEVICE_DELETED", "dimm2"), event("DEVICE_UNPLUG_GUEST_ERROR", "dimm2")], WAIT, TIMED_OUT),
        ([{"event": "RESET"}], WAIT, TIMED_OUT),
    ],
)
def test_what_is_told_decides_and_time_only_where_nothing_is(
    events: list[dict[str, Any]], elapsed: float, expected: Verdict
) -> None:
    assert verdict(events, elapsed, alias="dimm1") is expected


@pytest.mark.parametrize(
    ("events", "error_class", "expected"),
    [
        ([], "GenericError", REJECTED),
        ([], "DeviceNotFound", REMOVED),
        # A repeat that QEMU refused because the device was going just then.
        ([DELETED], "GenericError", REMOVED),
    ],
)
def test_an_error_of_the_command_needs_no_wait(events: list[dict[str, Any]], error_class: str, expected: Verdict) -> None:
    assert verdict(events, 0, alias="dimm1", error_class=error_class) is expected


def test_which_calls_fail() -> None:
    failing = {(found, kind) for found in (REMOVED, REJECTED, TIMED_OUT) for kind in Kind if fails(found, kind)}
    assert failing == {(REJECTED, kind) for kind in Kind} | {(TIMED_OUT, Kind.CORE)}
    with pytest.raises(ValueError, match="still waits"):
        fails(UNKNOWN, Kind.DIMM)


def on_record_or_crashed() -> list[OnRecord]:
    recorded = list(on_record())
    return [*recorded, replace(recorded[0], situation="crash", attempt=crashed(recorded[0].attempt))]


def crashed(attempt: Attempt) -> Attempt:
    return replace(attempt, outcome=Outcome.CRASHED, events=())


@pytest.mark.parametrize(
    "one", on_record_or_crashed(), ids=lambda one: f"{one.attempt.kind}-{one.situation}-{one.qemu}-{one.linux}"
)
def test_what_it_makes_of_an_attempt(one: OnRecord) -> None:
    """It hears of a refusal only where QEMU has the general event; of a silence it never learns more than that time went by."""
    attempt = one.attempt
    told = "DEVICE_UNPLUG_GUEST_ERROR" in attempt.event_names
    assert (
        attempt.management
        is {
            Outcome.REMOVED: REMOVED,
            Outcome.REFUSED: REJECTED if told else TIMED_OUT,
            Outcome.REJECTED: REJECTED,
            # After the refusal that came before it.
            Outcome.PENDING: REJECTED if told else TIMED_OUT,
            Outcome.REVERTED: TIMED_OUT,
            Outcome.CRASHED: UNKNOWN,
        }[attempt.outcome]
    )


def test_a_device_that_qemu_does_not_know_is_gone() -> None:
    rejected = next(one.attempt for one in on_record() if one.attempt.outcome is Outcome.REJECTED)
    assert replace(rejected, reply=f"Device '{rejected.device}' not found").management is REMOVED
