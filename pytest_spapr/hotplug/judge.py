"""The judge of an attempt: sends ``device_del``, watches QEMU, the guest and the events together, and ends when the verdict is certain.

A wait for silence ends with the guest's own evidence. The deadline is a backstop, and an attempt that runs into it says so.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Final, Protocol

from pytest_spapr.deadline import Deadline
from pytest_spapr.errors import ConfigError, DeadlineExpired, GuestError, MachineDied, MachineError, QmpRefused
from pytest_spapr.guest.services import DRMGR_BEGAN, DRMGR_ENDED, ErrdState
from pytest_spapr.guest.trouble import ends_trace, troubles
from pytest_spapr.hotplug import drc
from pytest_spapr.hotplug.attempt import Attempt, Views
from pytest_spapr.hotplug.evidence import Clue
from pytest_spapr.hotplug.outcome import Kind, Outcome, Presence, Silence
from pytest_spapr.machine import Machine
from pytest_spapr.qemu.clock import virtual_seconds
from pytest_spapr.timeline import Lane, Record

_ABOUT_UNPLUG: Final = re.compile(r"DEVICE_DELETED|.*UNPLUG.*")
# The device is where it was, and something may yet come of it.
_LASTING: Final = (Outcome.PENDING, Outcome.REFUSED, Outcome.REVERTED)
_OUTCOMES: Final = {
    "DEVICE_DELETED": Outcome.REMOVED,
    "DEVICE_UNPLUG_GUEST_ERROR": Outcome.REFUSED,
    "MEM_UNPLUG_ERROR": Outcome.REFUSED,
}


class Unpluggable(Protocol):
    """What the judge needs of a device."""

    kind: ClassVar[Kind]
    id: str
    drcs: tuple[int, ...]

    @property
    def waiting(self) -> bool | None:
        """Whether QEMU waits now for the guest to give this device back; None if it cannot say."""

    def unplug_clue(self, record: Record) -> Clue | None:
        """Return what a record says of the guest's giving up this device."""

    def unannounced(self, since: int) -> str | None:
        """Return the evidence if QEMU told the guest nothing of the unplug since the cursor."""

    def views(self) -> Views:
        """Return QEMU's and the guest's view, each asked now."""

    def qemu_presence(self) -> Presence:
        """Return QEMU's view alone."""


@dataclass(slots=True)
class _Verdict:
    outcome: Outcome
    cause: Silence | None = None
    reply: str | None = None
    evidence: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Heard:
    """What a record means for the attempt: an outcome that QEMU told, a clue from the guest, or the end of all waiting.

    :ivar traced: the guest's kernel has shown where something went wrong with it.
    """

    record: Record
    outcome: Outcome | None = None
    clue: Clue | None = None
    halted: bool = False
    traced: bool = False


class Judge:
    """Judges one attempt on a device.

    :param pending: whether an earlier attempt left the device pending. :param seconds: the backstop.
    """

    def __init__(self, device: Unpluggable, machine: Machine, *, pending: bool, seconds: float) -> None:
        self._device = device
        self._machine = machine
        self._timeline = machine.timeline
        self._pending = pending
        self._seconds = seconds

    def attempt(self) -> Attempt:
        """Send ``device_del`` and judge what follows."""
        announced = self._announced()
        began = self._timeline.mark()
        self._timeline.step(f"unplug {self._device.kind} {self._device.id}")
        try:
            self._machine.qmp.execute("device_del", {"id": self._device.id})
            verdict = self._unannounced(announced) or self._watch(began, known_pending=self._pending)
        except QmpRefused as error:
            verdict = _Verdict(Outcome.REJECTED, reply=error.description, evidence=[f"QEMU: {error.description}"])
        except MachineDied as error:
            verdict = _Verdict(Outcome.CRASHED, evidence=str(error).splitlines())
        return self._conclude(began, began, verdict)

    def follow(self, attempt: Attempt) -> Attempt:
        """Judge what becomes of a pending attempt, without a new command."""
        if attempt.outcome is Outcome.REMOVED:
            # Nothing more can come of it.
            return attempt
        self._timeline.step(f"follow the unplug of {self._device.kind} {self._device.id}")
        try:
            verdict = self._watch(attempt.ended, known_pending=True)
        except MachineDied as error:
            verdict = _Verdict(Outcome.CRASHED, evidence=str(error).splitlines())
        return self._conclude(attempt.began, attempt.ended, verdict)

    def outlast(self, attempt: Attempt, seconds: float) -> Attempt:
        """Judge an attempt that left the device in place anew when it is so old by the machine's virtual clock."""
        if attempt.outcome not in _LASTING:
            raise ConfigError(f"only an attempt that is {', '.join(_LASTING)} can be outlasted, not: {attempt}")
        self._timeline.step(f"outlast the unplug of {self._device.kind} {self._device.id}: {seconds:g} s of virtual time")
        try:
            verdict = self._outlive(attempt, seconds)
        except MachineDied as error:
            verdict = _Verdict(Outcome.CRASHED, evidence=str(error).splitlines())
        return self._conclude(attempt.began, attempt.ended, verdict)

    def _outlive(self, attempt: Attempt, seconds: float) -> _Verdict:
        """Listen until the virtual clock says that the time is over; a verdict that comes before ends it."""
        accepted = self._accepted(attempt)
        cursor, cause, evidence = attempt.ended, attempt.cause, list(attempt.evidence)
        while (left := seconds - virtual_seconds(self._timeline, accepted)) > 0:
            if (status := self._machine.status()) != "running":
                raise MachineError(f"the machine is {status}: its virtual clock stands still, and the attempt grows no older")
            try:
                what = f"the unplug of {self._device.id} to be {seconds:g} s old"
                heard = self._timeline.wait(self._hear, since=cursor, deadline=Deadline(left), what=what)
            except DeadlineExpired:
                continue
            cursor = heard.record.seq + 1
            if heard.traced:
                continue
            evidence.append(f"{heard.record.lane}: {heard.record.text}")
            if heard.outcome is not None:
                return _Verdict(heard.outcome, evidence=evidence)
            if heard.clue is Clue.FAILED and cause is not None:
                cause = Silence.REFUSED_UNSIGNALLED
        return self._told(attempt.ended) or _Verdict(attempt.outcome, cause, evidence=evidence)

    def _accepted(self, attempt: Attempt) -> int:
        """Return the cursor of QEMU's answer to the attempt's ``device_del``: whatever it began by then is at least as old."""
        answers = (record.seq for record in self._timeline.since(attempt.began, Lane.QMP) if record.text.startswith("<-"))
        return next(answers, attempt.ended)

    def _watch(self, since: int, *, known_pending: bool) -> _Verdict:
        deadline = Deadline(self._seconds)
        if not known_pending:
            told = self._until_pending(since, deadline)
            if told is not None:
                return told
        if (halted := self._halted()) is not None:
            return self._told(since) or halted
        if (unheard := self._unheard(since)) is not None:
            return self._told(since) or unheard
        return self._listen(since, deadline)

    def _until_pending(self, since: int, deadline: Deadline) -> _Verdict | None:
        """Return the verdict if QEMU released the device at once, None if it waits for the guest."""
        drcs = set(self._device.drcs)

        def decide(record: Record) -> _Heard | None:
            if drc.traced(record, drc.AWAITING) in drcs:
                return _Heard(record)
            return self._hear_outcome(record)

        what = f"QEMU to take up the unplug of {self._device.id}"
        heard = self._timeline.wait(decide, since=since, deadline=deadline, what=what)
        if heard.outcome is None:
            return None
        return _Verdict(heard.outcome, evidence=[f"QEMU: {heard.record.text}"])

    def _halted(self) -> _Verdict | None:
        status = self._machine.status()
        if status != "running":
            return _Verdict(
                Outcome.PENDING, Silence.NOT_DELIVERED, evidence=[f"QEMU: the machine is {status}, no vCPU takes the event"]
            )
        if not self._machine.has_guest:
            return _Verdict(Outcome.PENDING, Silence.NOT_DELIVERED, evidence=["the machine has no operating system"])
        return None

    def _unheard(self, since: int) -> _Verdict | None:
        """Return the verdict if who has to act in the guest does not get the event."""
        line = self._device.unannounced(since)
        if line is None and self._device.kind.by_drmgr:
            state = self._machine.guest.rtas_errd.state()
            if state is not ErrdState.RUNNING:
                line = f"guest: rtas_errd is {state}; the kernel keeps the event for it"
        return None if line is None else _Verdict(Outcome.PENDING, Silence.NOT_DELIVERED, evidence=[line])

    def _announced(self) -> int | None:
        """Return, before a repeat, how many events the guest has been told of; None where it is no repeat or nobody can say."""
        if not self._pending or self._halted() is not None:
            return None
        try:
            return self._machine.guest.hotplug_interrupts()
        except MachineDied:
            # So will the device_del, and that is an attempt.
            return None

    def _unannounced(self, before: int | None) -> _Verdict | None:
        """Return the verdict if QEMU accepted a repeat and told the guest nothing: so does 5.2, for all but DIMMs."""
        if before is None or self._halted() is not None or self._machine.guest.hotplug_interrupts() > before:
            return None
        line = f"guest: no hotplug interrupt came for the repeat, there were {before} before it"
        return _Verdict(Outcome.PENDING, Silence.NOT_DELIVERED, evidence=[line])

    def _listen(self, since: int, deadline: Deadline) -> _Verdict:
        """Follow the guest's work, clue by clue, until it is over."""
        evidence: list[str] = []
        cursor = since
        while True:
            try:
                what = f"the outcome of the unplug of {self._device.id}"
                heard = self._timeline.wait(self._hear, since=cursor, deadline=deadline, what=what)
            except DeadlineExpired as error:
                return self._overdue(evidence, error)
            cursor = heard.record.seq + 1
            if heard.traced:
                if any(trouble.ends_hotplug for trouble in troubles(self._timeline.since(since))):
                    return self._told(since) or _Verdict(Outcome.PENDING, Silence.STILL_WORKING, evidence=evidence)
                continue
            evidence.append(f"{heard.record.lane}: {heard.record.text}")
            if heard.outcome is not None:
                return _Verdict(heard.outcome, evidence=evidence)
            if heard.halted and not self._resumed(heard.record):
                return _Verdict(Outcome.PENDING, Silence.NOT_DELIVERED, evidence=evidence)
            if heard.clue is Clue.FAILED:
                return self._after_failure(since, evidence)

    def _hear(self, record: Record) -> _Heard | None:
        if record.lane is Lane.EVENT and record.data is not None:
            event = record.data
            if event["event"] in ("STOP", "SHUTDOWN", "GUEST_PANICKED"):
                return _Heard(record, halted=True)
            if self._is_about(event) and event["event"] in _OUTCOMES:
                return _Heard(record, outcome=_OUTCOMES[event["event"]])
            return None
        clue = self._device.unplug_clue(record)
        if clue is None and not self._device.kind.by_drmgr and ends_trace(record):
            return _Heard(record, traced=True)
        return _Heard(record, clue=clue) if clue is not None else None

    def _hear_outcome(self, record: Record) -> _Heard | None:
        """As :meth:`_hear`, of events only that settle the outcome."""
        heard = self._hear(record)
        return heard if heard is not None and heard.outcome is not None else None

    def _resumed(self, record: Record) -> bool:
        """Return whether the machine was only paused, maybe to be moved to another QEMU, and runs again."""
        return record.event == "STOP" and self._machine.status() == "running"

    def _after_failure(self, since: int, evidence: list[str]) -> _Verdict:
        """The guest gave up: let it finish its rollback, then see whether QEMU was told."""
        self._settle(since)
        if (told := self._told(since)) is not None:
            told.evidence[:0] = evidence
            return told
        evidence.append("guest: its work on the event is over, and QEMU was told nothing")
        return _Verdict(Outcome.PENDING, Silence.REFUSED_UNSIGNALLED, evidence=evidence)

    def _blocked(self) -> str | None:
        """Return the evidence if the guest's drmgr is kept from its work by another one."""
        if not self._device.kind.by_drmgr:
            return None
        holder = self._machine.guest.drmgr.lock_holder()
        if holder is None or f"{self._device.drcs[0]:#x}" in holder.command:
            return None
        return f"guest: drmgr's lock is held by process {holder.pid}, `{holder.command}`"

    def _overdue(self, evidence: list[str], error: DeadlineExpired) -> _Verdict:
        backstop = f"no verdict before the backstop: {error}"
        try:
            blocked = self._blocked()
        except (DeadlineExpired, GuestError):
            # Asked for its view it says no more, and that is told.
            blocked = None
        if blocked is not None:
            return _Verdict(Outcome.PENDING, Silence.QUEUE_BLOCKED, evidence=[*evidence, blocked, backstop])
        cause = Silence.STILL_WORKING if evidence else Silence.NOT_DELIVERED
        return _Verdict(Outcome.PENDING, cause, evidence=[*evidence, backstop])

    def _told(self, since: int) -> _Verdict | None:
        """Return what QEMU's events have said since; the query makes sure that all of them have arrived."""
        self._machine.qmp.execute("query-status")
        for record in self._timeline.since(since, Lane.EVENT):
            heard = self._hear_outcome(record)
            if heard is not None and heard.outcome is not None:
                return _Verdict(heard.outcome, evidence=[f"QEMU: {record.text}"])
        return None

    def _conclude(self, began: int, since: int, verdict: _Verdict) -> Attempt:
        """Let both sides come to rest, then gather the events, ask for the views, and ask QEMU whether it still waits.

        :param since: where the verdict's part of the timeline begins.
        """
        views, waiting = Views(Presence.UNKNOWN, Presence.UNKNOWN), None
        try:
            if verdict.outcome in (Outcome.REMOVED, Outcome.REFUSED) and self._machine.has_guest and self._machine.running:
                self._settle(began)
            views = self._views(verdict)
            waiting = self._device.waiting
            if verdict.outcome is Outcome.PENDING and waiting is False:
                verdict = self._no_longer_pending(since, verdict, views)
                views = self._views(verdict)
        except MachineDied as error:
            verdict = _Verdict(Outcome.CRASHED, evidence=[*verdict.evidence, *str(error).splitlines()])
            waiting = None
        records = self._timeline.since(began)
        verdict.evidence.extend(f"guest's kernel: {trouble}" for trouble in troubles(records))
        first = next(record for record in records if record.lane is Lane.STEP)
        attempt = Attempt(
            device=self._device.id,
            kind=self._device.kind,
            outcome=verdict.outcome,
            cause=verdict.cause,
            asked=self._asked(began, verdict.outcome),
            reply=verdict.reply,
            events=tuple(r.data for r in records if r.lane is Lane.EVENT and r.data is not None and self._is_about(r.data)),
            evidence=tuple(verdict.evidence),
            views=views,
            elapsed=records[-1].time - first.time,
            began=began,
            ended=records[-1].seq + 1,
            waiting=waiting,
            drcs=self._device.drcs,
        )
        self._timeline.step(f"verdict: {attempt}")
        return attempt

    def _views(self, verdict: _Verdict) -> Views:
        """Ask both for their views; that the guest does not answer is evidence where nothing has come of the attempt."""
        try:
            return self._device.views()
        except (DeadlineExpired, GuestError, MachineError) as error:
            if verdict.outcome is not Outcome.PENDING or isinstance(error, MachineDied):
                raise
            verdict.evidence.append(f"the guest does not answer: {error}")
            return Views(self._device.qemu_presence(), Presence.UNKNOWN)

    def _no_longer_pending(self, since: int, verdict: _Verdict, views: Views) -> _Verdict:
        """Return what became of an attempt that was pending until QEMU was asked whether it still waits."""
        if (told := self._told(since)) is not None:
            return told
        if views.qemu is not Presence.ABSENT:
            line = "QEMU: it no longer waits for the guest, and has told nobody"
            return _Verdict(Outcome.REVERTED, verdict.cause, evidence=[*verdict.evidence, line])
        try:
            # A device is out of the tree before QEMU tells, which it does when RCU has let go of it: up to a second later.
            what = f"QEMU to tell that {self._device.id} is gone"
            heard = self._timeline.wait(self._hear_outcome, since=since, deadline=Deadline(self._seconds), what=what)
        except DeadlineExpired as error:
            return _Verdict(Outcome.PENDING, verdict.cause, evidence=[*verdict.evidence, str(error)])
        return _Verdict(heard.outcome or verdict.outcome, evidence=[*verdict.evidence, f"QEMU: {heard.record.text}"])

    def _asked(self, began: int, outcome: Outcome) -> bool:
        # A core that is pending already is announced to the guest again without a trace of its own.
        if outcome is Outcome.REJECTED:
            return False
        return self._pending or drc.awaiting(self._timeline, began, set(self._device.drcs))

    def _settle(self, since: int) -> None:
        """Return when the guest is done with the event, so that its view and QEMU's can be compared."""
        if self._device.kind.by_drmgr:
            self._await_drmgr(since)
        else:
            self._machine.guest.settle()
        # Events come before the reply of a command that was sent after them.
        self._machine.qmp.execute("query-status")

    def _await_drmgr(self, since: int) -> None:
        begun = sum(1 for record in self._timeline.since(since, Lane.SERVICE) if DRMGR_BEGAN.match(record.text))
        if not begun:
            return
        ended = 0

        def decide(record: Record) -> bool | None:
            nonlocal ended
            ended += record.lane is Lane.SERVICE and DRMGR_ENDED.match(record.text) is not None
            return True if ended >= begun else None

        self._timeline.wait(decide, since=since, deadline=Deadline(self._seconds), what="drmgr to end")

    def _is_about(self, event: Mapping[str, Any]) -> bool:
        # A device without an id of its own has its path for one.
        named = "path" if self._device.id.startswith("/") else "device"
        return _ABOUT_UNPLUG.fullmatch(event["event"]) is not None and event.get("data", {}).get(named) == self._device.id
