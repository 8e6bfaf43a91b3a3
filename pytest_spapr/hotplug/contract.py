"""Contracts: what a QEMU build together with a guest kernel promises of an unplug. The rows are data, in ``contracts/``.

A row is chosen by the device's kind, the situation, the features that the build was probed for and the guest's kernel release.
Exactly one row must fit: none or two are an error of the data, never a pass.
"""

from __future__ import annotations

import re
import tomllib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any, Protocol, Self

from pytest_spapr.errors import ConfigError
from pytest_spapr.hotplug.attempt import Attempt
from pytest_spapr.hotplug.outcome import Kind, Outcome, Presence, Silence


class HasKind(Protocol):
    """Anything with a device kind."""

    @property
    def kind(self) -> Kind: ...


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


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One promise and the builds and kernels that it holds for.

    :ivar needs: features that the build must have, e.g. ``event:MEM_UNPLUG_ERROR``. :ivar lacks: those that it must not have.
    :ivar kernel: bounds on the guest's kernel release, e.g. ``>=5.14``; None for any.
    """

    expectation: Expectation
    needs: frozenset[str]
    lacks: frozenset[str]
    kernel: str | None

    def fits(self, features: frozenset[str], kernel: tuple[int, ...]) -> bool:
        """Return whether the row speaks of this build and this kernel."""
        return self.needs <= features and not self.lacks & features and (self.kernel is None or _within(kernel, self.kernel))

    @classmethod
    def parse(cls, data: Mapping[str, Any]) -> Self:
        """Return the row that a TOML table describes.

        :raises ConfigError: a key is missing, unknown or has a wrong value.
        """
        entry = dict(data)
        try:
            needs, lacks = frozenset(entry.pop("needs", ())), frozenset(entry.pop("lacks", ()))
            kernel = entry.pop("kernel", None)
            outcome = Outcome(entry.pop("outcome"))
            expectation = Expectation(
                kind=Kind(entry.pop("kind")),
                situation=entry.pop("situation"),
                outcome=outcome,
                cause=Silence(entry.pop("cause")) if "cause" in entry else None,
                asked=entry.pop("asked"),
                reply=entry.pop("reply", None),
                events=tuple(EventRule(**rule) for rule in entry.pop("events", ())),
                qemu=Presence(entry.pop("qemu")),
                guest=tuple(Presence(view) for view in _listed(entry.pop("guest"))),
                waiting=entry.pop("waiting", outcome is Outcome.PENDING),
                source=entry.pop("source"),
            )
        except (KeyError, ValueError, TypeError) as error:
            raise ConfigError(f"contract row {dict(data)!r} is not usable: {error}") from error
        if entry:
            raise ConfigError(f"contract row for {expectation!r} has unknown keys: {', '.join(sorted(entry))}")
        return cls(expectation=expectation, needs=needs, lacks=lacks, kernel=kernel)


def packaged_rows() -> tuple[Row, ...]:
    """Return every row of the package's contracts."""
    files = (file for file in (resources.files("pytest_spapr.hotplug") / "contracts").iterdir() if file.name.endswith(".toml"))
    tables = (tomllib.loads(file.read_text(encoding="utf-8")) for file in sorted(files, key=lambda file: file.name))
    return tuple(Row.parse(entry) for table in tables for entry in table.get("row", ()))


class Contract:
    """The promises of one QEMU build with one guest kernel.

    :param features: the build's probed features, see ``qemu.build``.
    :param kernel: the guest's kernel release, e.g. ``6.1.0-50-powerpc64le``.
    :param rows: the contract data.
    """

    def __init__(self, features: frozenset[str], kernel: str, rows: Sequence[Row] | None = None) -> None:
        self._features = features
        self._kernel = version(kernel)
        self._rows = tuple(rows) if rows is not None else packaged_rows()

    def removal(self, device: HasKind) -> Expectation:
        """Return what is promised when the guest gives the device up."""
        return self.expect(device.kind, "removal")

    def refusal(self, device: HasKind, *, cause: str) -> Expectation:
        """Return what is promised when the guest refuses and can say so. ``cause`` as in ``contracts/``."""
        return self.expect(device.kind, f"refusal: {cause}")

    def silence(self, device: HasKind, *, cause: str) -> Expectation:
        """Return what is promised when nobody answers. ``cause`` as in ``contracts/``."""
        return self.expect(device.kind, f"silence: {cause}")

    def rejection(self, device: HasKind, *, cause: str) -> Expectation:
        """Return what is promised when QEMU refuses the command itself. ``cause`` as in ``contracts/``."""
        return self.expect(device.kind, f"rejection: {cause}")

    def unasked_removal(self, device: HasKind) -> Expectation:
        """Return what is promised for a device that the guest never configured: it is removed, and nobody is asked."""
        return self.expect(device.kind, "removal: never configured")

    def repeat(self, device: HasKind) -> Expectation:
        """Return what is promised for a ``device_del`` while an earlier one is pending and its cause lasts."""
        return self.expect(device.kind, "repeat while pending")

    def outlasted(self, device: HasKind, *, cause: str) -> Expectation:
        """Return what is promised of a silence that outlasts every time limit that a QEMU has for an unplug, ``cause`` going on."""
        return self.expect(device.kind, f"outlasted: {cause}")

    def expect(self, kind: Kind, situation: str) -> Expectation:
        """Return what is promised for a kind of device in a situation.

        :raises ConfigError: no row fits, or more than one does; the message lists the situations there are.
        """
        named = [row for row in self._rows if row.expectation.kind is kind and row.expectation.situation == situation]
        fitting = [row.expectation for row in named if row.fits(self._features, self._kernel)]
        if len(fitting) == 1:
            return fitting[0]
        if not named:
            known = sorted({row.expectation.situation for row in self._rows if row.expectation.kind is kind})
            raise ConfigError(f"no contract speaks of {kind} {situation!r}; there are {known}")
        raise ConfigError(f"{len(fitting)} contract rows for {kind} {situation!r} fit this QEMU and kernel {self._kernel}")


def version(release: str) -> tuple[int, ...]:
    """Return the leading numbers of a release: ``6.1.0-50-powerpc64le`` is ``(6, 1, 0)``."""
    match = re.match(r"\d+(\.\d+)*", release)
    if match is None:
        raise ConfigError(f"{release!r} is not a kernel release, expected one like 6.1.0-50-powerpc64le")
    return tuple(int(number) for number in match[0].split("."))


def _within(release: tuple[int, ...], bounds: str) -> bool:
    for bound in bounds.split(","):
        match = re.fullmatch(r"(>=|<)(\d+(?:\.\d+)*)", bound.strip())
        if match is None:
            raise ConfigError(f"{bound!r} is not a bound on a kernel release, expected one like >=5.14 or <6.1")
        limit = tuple(int(number) for number in match[2].split("."))
        if (release >= limit) is not (match[1] == ">="):
            return False
    return True


def _listed(value: str | list[str]) -> list[str]:
    return [value] if isinstance(value, str) else value


def _word(value: object) -> str:
    return "nothing" if value is None else f"{value}"
