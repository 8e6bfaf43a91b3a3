"""The facts of an expectation: an attempt that keeps all of them, and every way to break one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, replace
from enum import StrEnum
from typing import Any, Final, TypeVar

from pytest_spapr.hotplug.attempt import Attempt, Views
from pytest_spapr.hotplug.expectation import EventRule, Expectation
from pytest_spapr.hotplug.outcome import Kind, Outcome, Presence, Silence

Member = TypeVar("Member", bound=StrEnum)
_NUMBER: Final = 14


def kept(promised: Expectation, device: str = "thing1") -> Attempt:
    """Return an attempt that is just what was promised."""
    events = [{"event": rule.name, "data": {"device": device}} for rule in promised.events for _ in range(rule.least)]
    return Attempt(
        device=device,
        kind=promised.kind,
        outcome=promised.outcome,
        cause=promised.cause,
        asked=promised.asked,
        reply=None if promised.reply is None else promised.reply.format(id=device, number=_NUMBER),
        events=tuple(events),
        evidence=("kernel: evidence",),
        views=Views(promised.qemu, promised.guest[0]),
        elapsed=0.25,
        began=0,
        ended=9,
        waiting=promised.waiting,
    )


def broken(promised: Expectation) -> Iterator[tuple[str, Expectation]]:
    """Yield (fact, the expectation with that fact broken), for every fact."""
    yield "outcome", replace(promised, outcome=_another(promised.outcome))
    yield "cause", replace(promised, cause=None if promised.cause else Silence.STILL_WORKING)
    yield "asked", replace(promised, asked=not promised.asked)
    yield "reply", replace(promised, reply=None if promised.reply else "Not today")
    yield "qemu", replace(promised, qemu=_another(promised.qemu))
    yield "guest", replace(promised, guest=tuple(view for view in Presence if view not in promised.guest))
    yield "waiting", replace(promised, waiting=not promised.waiting)
    yield "no other event", replace(promised, events=(*promised.events, EventRule("GUEST_PANICKED")))
    for number, rule in enumerate(promised.events):
        others = promised.events[:number], promised.events[number + 1 :]
        yield f"event {rule.name}", replace(promised, events=(*others[0], *others[1]))
        more = replace(rule, least=rule.most + 1, most=rule.most + 1)
        yield f"number of {rule.name}", replace(promised, events=(*others[0], more, *others[1]))
    if len(promised.events) > 1:
        yield "order of events", replace(promised, events=promised.events[::-1])


def described(promised: Expectation) -> dict[str, Any]:
    """Return an expectation as plain data: two of them are the same promise if these are equal."""
    return asdict(promised)


def read_attempt(data: dict[str, Any]) -> Attempt:
    """Return the attempt that was written by ``dataclasses.asdict``."""
    views = data["views"]
    return Attempt(
        **data
        | {
            "kind": Kind(data["kind"]),
            "outcome": Outcome(data["outcome"]),
            "cause": None if data["cause"] is None else Silence(data["cause"]),
            "events": tuple(data["events"]),
            "evidence": tuple(data["evidence"]),
            "views": Views(Presence(views["qemu"]), Presence(views["guest"])),
        }
    )


def _another(member: Member) -> Member:
    return next(other for other in type(member) if other is not member)
