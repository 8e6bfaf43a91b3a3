"""What a terminal says of an attempt that is not what was expected."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from pytest_spapr.hotplug.attempt import Attempt, Views
from pytest_spapr.hotplug.expectation import EventRule, Expectation
from pytest_spapr.hotplug.outcome import Kind, Outcome, Presence, Silence
from pytest_spapr.report.failure import Scene, explain

from .timelines import CORE, HEARS_ALL, Script, refused_core

REFUSAL = Expectation(
    kind=Kind.CORE,
    situation="refusal: last online CPU",
    outcome=Outcome.REFUSED,
    asked=True,
    events=(EventRule("DEVICE_UNPLUG_GUEST_ERROR"),),
    qemu=Presence.PRESENT,
    guest=(Presence.PRESENT,),
    source="QEMU 87758fed7a, seen on 7.2 to 11.1",
)
PENDING = Attempt(
    device="core1",
    kind=Kind.CORE,
    outcome=Outcome.PENDING,
    cause=Silence.REFUSED_UNSIGNALLED,
    asked=True,
    reply=None,
    events=(),
    evidence=("kernel: pseries-hotplug-cpu: Failed to offline CPU 8, rc: -16", "guest: its work is over"),
    views=Views(Presence.PRESENT, Presence.PRESENT),
    elapsed=0.412,
    began=0,
    ended=9,
    waiting=True,
    drcs=(CORE,),
)


def of(script: Script, **given: Any) -> Attempt:
    """Return the last attempt of a script."""
    records = script.timeline.since()
    began = next(one.seq for one in records if one.text.startswith("unplug"))
    return replace(PENDING, began=began, ended=len(records), **given)


def test_what_was_promised_and_seen_stand_side_by_side() -> None:
    script = refused_core(heard=False)
    scene = Scene(script.timeline.since(), frozenset(), ["file:///artefacts/timeline.html#r20"])
    assert explain(of(script), REFUSAL, scene) == [
        "core core1: not what the contract promises for 'refusal: last online CPU' (0.412 s after device_del)",
        "               expected                                  observed",
        "outcome        refused                                   pending",
        "cause          nothing                                   refused without signalling",
        "QEMU waits     False                                     True",
        "events         DEVICE_UNPLUG_GUEST_ERROR x1              none",
        "evidence       kernel: pseries-hotplug-cpu: Failed to offline CPU 8, rc: -16",
        "               guest: its work is over",
        "connectors     CPU 0x10000008: configured, pending",
        "libvirt        would conclude: nothing for 10 s: it gives up waiting, and the device may still go at any time",
        "as promised    guest asked True, QEMU's view present, the guest's view present",
        "contract       QEMU 87758fed7a, seen on 7.2 to 11.1",
        "see            file:///artefacts/timeline.html#r20",
    ]


def test_events_stand_in_order_with_their_times() -> None:
    script = refused_core()
    again = script.event("DEVICE_UNPLUG_GUEST_ERROR", device="core1", path="/machine/peripheral/core1")
    first = next(one.data for one in script.timeline.since() if one.event)
    assert first is not None
    twice = of(script, outcome=Outcome.REFUSED, cause=None, waiting=False, events=(first, again), evidence=())
    assert explain(twice, REFUSAL, Scene(script.timeline.since(), HEARS_ALL)) == [
        "core core1: not what the contract promises for 'refusal: last online CPU' (0.412 s after device_del)",
        "               expected                                  observed",
        "events         DEVICE_UNPLUG_GUEST_ERROR x1              DEVICE_UNPLUG_GUEST_ERROR x2",
        "heard          0.004 s DEVICE_UNPLUG_GUEST_ERROR, 1.000 s DEVICE_UNPLUG_GUEST_ERROR",
        "connectors     CPU 0x10000008: configured",
        "libvirt        would conclude: the device stays, and it may ask again at once",
        "as promised    outcome refused, guest asked True, QEMU's view present, QEMU waits for the guest False, "
        "the guest's view present",
        "contract       QEMU 87758fed7a, seen on 7.2 to 11.1",
    ]


def test_an_attempt_that_was_compared_with_nothing_is_told_too() -> None:
    assert explain(replace(PENDING, evidence=tuple(f"kernel: line {number}" for number in range(5)))) == [
        "core core1: PENDING (refused without signalling) after 0.412 s guest asked, events [] QEMU says present, the guest says present, "
        "QEMU waits",
        "heard          no event about core1",
        "evidence       kernel: line 2",
        "               kernel: line 3",
        "               kernel: line 4",
        "               and 2 more before",
        "libvirt        would conclude: nothing for 10 s: it gives up waiting, and the device may still go at any time",
    ]


@pytest.mark.parametrize(
    ("outcome", "reply", "words"),
    [
        (Outcome.CRASHED, None, "nothing: the domain ended with QEMU"),
        (Outcome.REJECTED, "Device 'core1' not found", "the device is gone"),
        (Outcome.REJECTED, "busy", "the device stays, and it may ask again at once"),
    ],
)
def test_what_a_management_layer_makes_of_it(outcome: Outcome, reply: str | None, words: str) -> None:
    lines = explain(replace(PENDING, outcome=outcome, reply=reply))
    assert f"libvirt        would conclude: {words}" in lines


def test_what_is_too_long_for_its_column_has_a_line_of_its_own() -> None:
    rejection = replace(REFUSAL, outcome=Outcome.REJECTED, reply="Core {id} is the boot core, and that cannot be removed at all")
    lines = explain(replace(PENDING, outcome=Outcome.REJECTED, cause=None, waiting=None, reply="no"), rejection)
    assert lines[2:4] == [
        "reply          Core {id} is the boot core, and that cannot be removed at all",
        "                                                         no",
    ]


def test_events_out_of_order_are_told_one_by_one() -> None:
    def event(name: str) -> dict[str, object]:
        return {"event": name, "data": {"device": "core1"}}

    both = replace(REFUSAL, events=(EventRule("A"), EventRule("B", 1, 2)))
    lines = explain(replace(PENDING, events=(event("B"), event("A"), event("B"))), both)
    assert "events         A x1, B x1..2                             B, A, B" in lines


def test_lmbs_in_one_state_are_told_together() -> None:
    script = refused_core()
    for index in (0x80000004, 0x80000005, 0x80000006):
        script.drc(index, "attach")
    script.drc(0x80000006, "allocation 1")
    dimm = replace(PENDING, drcs=(0x80000004, 0x80000005, 0x80000006), ended=len(script.timeline.since()))
    lines = explain(dimm, None, Scene(script.timeline.since(), HEARS_ALL))
    at = lines.index("connectors     LMB 0x80000004 to 0x80000005 (2 of them): unusable")
    assert lines[at + 1] == "               LMB 0x80000006: available"


def test_nothing_that_a_guest_wrote_reaches_the_terminal_as_it_is() -> None:
    lines = explain(
        replace(PENDING, evidence=("kernel: \x1b[2J\x07\u202e" + "x" * 500,)), None, Scene(where=["file:///" + "y" * 300])
    )
    assert all(line.isprintable() for line in lines)
    assert "evidence       kernel: \\x1b[2J\\x07\\x202exxx" in "\n".join(lines)
    assert max(map(len, lines[:-1])) == 150
    assert lines[-1].endswith("y" * 300), "what leads to a file is whole"
