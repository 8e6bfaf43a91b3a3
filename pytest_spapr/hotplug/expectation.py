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


@dataclass(frozen=True, slots=True)
class Aspect:
    """One thing of an attempt, as promised and as seen, in words. :ivar kept: whether it is as promised."""

    name: str
    expected: str
    observed: str
    kept: bool


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

    def aspects(self, attempt: Attempt) -> list[Aspect]:
        """Return each thing that is promised beside what was seen of it, most important first."""
        promised, waiting = self.guest, attempt.waiting in (self.waiting, None)
        return [
            Aspect("outcome", _word(self.outcome), _word(attempt.outcome), self.outcome is attempt.outcome),
            Aspect("cause", _word(self.cause), _word(attempt.cause), self.cause is attempt.cause),
            Aspect("guest asked", _word(self.asked), _word(attempt.asked), self.asked == attempt.asked),
            Aspect("QEMU's view", _word(self.qemu), _word(attempt.views.qemu), self.qemu is attempt.views.qemu),
            Aspect("reply", _word(self.reply), _word(attempt.reply), self._promised_reply(attempt)),
            Aspect("QEMU waits for the guest", _word(self.waiting), _word(attempt.waiting), waiting),
            Aspect("the guest's view", " or ".join(promised), _word(attempt.views.guest), attempt.views.guest in promised),
        ]

    def differences(self, attempt: Attempt) -> list[str]:
        """Return one line for each thing that is not as promised; an empty list if all is."""
        found = [f"{one.name}: expected {one.expected}, observed {one.observed}" for one in self.aspects(attempt) if not one.kept]
        return found + self.event_differences(attempt)

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

    def event_differences(self, attempt: Attempt) -> list[str]:
        """Return one line for each event that came too seldom, too often or out of order, or was not promised."""
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
