"""What a scenario showed: facts that are the same each time where the behaviour is the same, whatever ids and addresses were used."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import groupby
from typing import Final

from pytest_spapr.hotplug.attempt import Attempt
from pytest_spapr.hotplug.drc import traced_state
from pytest_spapr.hotplug.outcome import Kind, Outcome
from pytest_spapr.timeline import Record

_SECONDS: Final = re.compile(r"\d+(?= seconds?\b)")


@dataclass(frozen=True, kw_only=True, slots=True)
class Observation:
    """One attempt of a scenario.

    :ivar step: which, e.g. ``repeat``. :ivar situation: the contract's name for it; None where no contract speaks of it.
    :ivar reply: QEMU's words, with ``{id}`` for the device's id and ``{number}`` for seconds.
    :ivar events: names in order, those in a row counted: ``DEVICE_UNPLUG_GUEST_ERROR x2``.
    :ivar drcs: what each of the device's connectors went through, lowest first.
    :ivar promised: whether a contract row speaks of it. :ivar differences: what was not as that row promises.
    :ivar evidence: what the verdict rests on; it differs from run to run. :ivar seconds: from the command to the verdict.
    """

    step: str
    kind: Kind
    situation: str | None
    outcome: str
    cause: str | None
    asked: bool
    reply: str | None
    events: tuple[str, ...]
    waiting: bool | None
    qemu: str
    guest: str
    drcs: tuple[tuple[str, ...], ...]
    promised: bool
    differences: tuple[str, ...]
    evidence: tuple[str, ...]
    seconds: float

    @property
    def facts(self) -> Mapping[str, object]:
        """What must be the same where the behaviour is, by name."""
        return {
            "reply": self.reply,
            "outcome": self.outcome,
            "cause": self.cause,
            "events": self.events,
            "waiting": self.waiting,
            "guest asked": self.asked,
            "QEMU's view": self.qemu,
            "the guest's view": self.guest,
            "DRC transitions": self.drcs,
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class Result:
    """One scenario on one machine.

    :ivar trouble: why it did not come to its end: what failed, in words; None if it did.
    :ivar defect: the id of the known defect that QEMU died of, or for which the scenario was not played.
    :ivar crashed: whether QEMU died, of whatever.
    :ivar seconds: what it took, without the machine's start.
    """

    scenario: str
    observations: tuple[Observation, ...] = ()
    trouble: str | None = None
    defect: str | None = None
    crashed: bool = False
    seconds: float = 0.0

    def find(self, step: str) -> Observation | None:
        return next((one for one in self.observations if one.step == step), None)


def observe(
    attempt: Attempt,
    records: Iterable[Record],
    drcs: Iterable[int],
    *,
    step: str,
    situation: str | None,
    differences: Iterable[str] | None,
) -> Observation:
    """Return the facts of an attempt.

    :param records: those of the timeline that the step made. :param drcs: the device's connectors.
    :param differences: from the contract; None where none speaks of it.
    """
    seen = list(records)
    return Observation(
        step=step,
        kind=attempt.kind,
        situation=situation,
        outcome=attempt.outcome.value,
        cause=attempt.cause.value if attempt.cause is not None else None,
        asked=attempt.asked,
        reply=_general(attempt.reply, attempt.device),
        events=counted(attempt.event_names),
        waiting=attempt.waiting,
        qemu=attempt.views.qemu.value,
        guest=attempt.views.guest.value,
        drcs=tuple(tuple(filter(None, (traced_state(record, index) for record in seen))) for index in drcs),
        promised=differences is not None,
        differences=tuple(differences or ()),
        evidence=attempt.evidence,
        seconds=round(attempt.elapsed, 3),
    )


def counted(names: Iterable[str]) -> tuple[str, ...]:
    """Return names in order, those in a row as one with their number."""
    rows = ((name, len(list(same))) for name, same in groupby(names))
    return tuple(f"{name} x{count}" if count > 1 else name for name, count in rows)


def in_words(one: Observation) -> str:
    """Return an observation as one short line for a table."""
    words = one.outcome
    if one.outcome == Outcome.REMOVED and not one.asked:
        words += " without asking"
    if one.cause is not None:
        words += f" ({one.cause})"
    # A rejected repeat says nothing of the attempt before it.
    if one.outcome != Outcome.REJECTED and one.waiting is (one.outcome != Outcome.PENDING):
        words += ", QEMU still waits" if one.waiting else ", QEMU no longer waits"
    if one.reply is not None:
        words += f": “{one.reply}”"
    if one.events:
        words += f": {', '.join(one.events)}"
    return words


def _general(reply: str | None, device: str) -> str | None:
    if reply is None:
        return None
    return _SECONDS.sub("{number}", re.sub(rf"(?<![\w/.]){re.escape(device)}(?!\w)", "{id}", reply))
