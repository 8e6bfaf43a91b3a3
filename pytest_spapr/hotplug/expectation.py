"""What an attempt must be, and how one that is not differs from it."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass

from pytest_spapr.hotplug.attempt import Attempt
from pytest_spapr.hotplug.outcome import Kind, Outcome, Presence, Silence


@dataclass(frozen=True, slots=True)
class EventRule:
    """How often an event for the device may come. :ivar least: :ivar most: both inclusive."""

    name: str
    least: int = 1
    most: int = 1

    def __str__(self) -> str:
        return self.name + (f" x{self.least}" if self.least == self.most else f" x{self.least}..{self.most}")


@dataclass(frozen=True, kw_only=True, eq=False)
class Expectation:
    """What an attempt must be. ``attempt == expectation`` compares, :meth:`differences` says what is wrong.

    :ivar asked: whether QEMU must have asked the guest.
    :ivar reply: QEMU's error text if the command is to be rejected, with ``{id}`` for the device and ``{number}`` for any number.
    :ivar events: all events about the device, in this order; no other may come.
    :ivar qemu: what QEMU's view must be. :ivar guest: what the guest's view may be: one, or several where the promise is the same
        for a guest that cannot be asked.
    :ivar waiting: whether QEMU must still wait for the guest afterwards. Not held against a QEMU that cannot say.
    :ivar source: where the promise is written or was read.
    """

    kind: Kind
    situation: str
    outcome: Outcome
    cause: Silence | None = None
    asked: bool
    reply: str | None = None
    events: tuple[EventRule, ...] = ()
    qemu: Presence
    guest: tuple[Presence, ...]
    waiting: bool = False
    source: str

    def differences(self, attempt: Attempt) -> list[str]:
        """Return one line for each thing that is not as promised; an empty list if all is."""
        found = []
        for name, expected, observed in (
            ("outcome", self.outcome, attempt.outcome),
            ("cause", self.cause, attempt.cause),
            ("guest asked", self.asked, attempt.asked),
            ("QEMU's view", self.qemu, attempt.views.qemu),
        ):
            if expected != observed:
                found.append(f"{name}: expected {_word(expected)}, observed {_word(observed)}")
        if not self._promised_reply(attempt):
            found.append(f"reply: expected {_word(self.reply)}, observed {_word(attempt.reply)}")
        if attempt.waiting not in (self.waiting, None):
            found.append(f"QEMU waits for the guest: expected {self.waiting}, observed {attempt.waiting}")
        if attempt.views.guest not in self.guest:
            found.append(f"the guest's view: expected {' or '.join(self.guest)}, observed {attempt.views.guest}")
        return found + self._event_differences(attempt)

    def explain(self, attempt: Attempt) -> list[str]:
        """Return the lines that tell a person what was promised and what was seen, most important first."""
        return [
            f"{attempt.kind} {attempt.device}: not what the contract promises for {self.situation!r}",
            *self.differences(attempt),
            f"promised events: {', '.join(map(str, self.events)) or 'none'}",
            f"observed: {attempt}",
            *(f"evidence: {line}" for line in attempt.evidence),
            f"contract: {self.source}",
        ]

    def __eq__(self, other: object) -> bool:
        return not self.differences(other) if isinstance(other, Attempt) else NotImplemented

    __hash__ = None  # type: ignore[assignment]  # equality with an Attempt is no identity

    def __repr__(self) -> str:
        events = ", ".join(map(str, self.events)) or "no event"
        return f"<Expectation {self.kind} {self.situation}: {self.outcome.upper()}, {events}>"

    def _promised_reply(self, attempt: Attempt) -> bool:
        if self.reply is None or attempt.reply is None:
            return self.reply is attempt.reply
        words = re.escape(self.reply).replace(r"\{id\}", re.escape(attempt.device)).replace(r"\{number\}", r"\d+")
        return re.fullmatch(words, attempt.reply) is not None

    def _event_differences(self, attempt: Attempt) -> list[str]:
        counts = Counter(attempt.event_names)
        order = [rule.name for rule in self.events]
        found = [
            f"events: expected {rule}, observed x{counts[rule.name]}"
            for rule in self.events
            if not rule.least <= counts[rule.name] <= rule.most
        ]
        found.extend(f"events: {name} x{count} was not promised" for name, count in counts.items() if name not in order)
        ranks = [order.index(name) for name in attempt.event_names if name in order]
        if ranks != sorted(ranks):
            found.append(f"events: expected the order {', '.join(order)}, observed {', '.join(attempt.event_names)}")
        return found


def _word(value: object) -> str:
    return "nothing" if value is None else f"{value}"
