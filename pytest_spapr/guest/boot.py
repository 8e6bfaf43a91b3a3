"""Whether a guest comes up: read from what its kernel and its init say, and from QEMU's events."""

from __future__ import annotations

import re
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from pytest_spapr.deadline import Deadline
from pytest_spapr.errors import BootFailed, DeadlineExpired, LoginRefused, SshFailed
from pytest_spapr.timeline import Lane, Record, Timeline

if TYPE_CHECKING:
    from pytest_spapr.guest.ssh import Ssh

READY: Final = "init: ready"
STARTED: Final = "init: started"

_PANIC: Final = re.compile(r"Kernel panic - not syncing: (?P<why>.*)")
_PANICKED: Final = "its kernel panicked (GUEST_PANICKED)"
# For what was written through one stream before something was told through another.
_STRAGGLER_SECONDS: Final = 1.0


# SLOF's last word, before its prompt.
_UNBOOTABLE: Final = re.compile(r"E3407: Load failed")
_TURN: Final = "the next try to log in"
# A port that QEMU forwards takes connections whether or not the guest does.
_ANSWER_SECONDS: Final = 30.0
_REFUSED_SECONDS: Final = 60.0


def await_ready(timeline: Timeline, since: int, deadline: Deadline) -> None:
    """Wait for the guest to say, after the cursor ``since``, that it is up.

    :raises BootFailed: the kernel panicked, the guest's init failed, or it was not ready in time.
    """
    try:
        failure = timeline.wait(_verdict, since=since, deadline=deadline, what="the guest to come up")
    except DeadlineExpired as error:
        raise BootFailed(
            _report(timeline, since, f"it was not ready within {error.seconds:g} s"), _phase(timeline, since)
        ) from error
    if failure == _PANICKED:
        failure = _panic_words(timeline, since)
    if failure:
        raise BootFailed(_report(timeline, since, failure), _phase(timeline, since))


def await_login(ssh: Ssh, timeline: Timeline, since: int, deadline: Deadline) -> None:
    """Wait for a guest that says nothing to us, begun after the cursor ``since``, to let us in.

    :raises BootFailed: the kernel panicked, it shut down, or it let nobody in within the time.
    """
    refused: Deadline | None = None
    while True:
        try:
            ssh.connect(deadline.sooner(_ANSWER_SECONDS))
            return
        except LoginRefused as error:
            # Before its services are up a guest may know the user, and not his key; and lets only root in (pam_nologin).
            refused = refused or deadline.sooner(_REFUSED_SECONDS)
            late, why = refused.expired, str(error)
        except SshFailed as error:
            late, why = deadline.expired, str(error)
        failure = ""
        with suppress(DeadlineExpired):
            failure = timeline.wait(_failure, since=since, deadline=deadline.sooner(1), what=_TURN)
        if failure or late:
            raise BootFailed(_report(timeline, since, failure or why), _phase(timeline, since))


def _failure(record: Record) -> str | None:
    """Return why a guest that does not know of us will never be up, or None."""
    if record.lane is Lane.CONSOLE and (said := _UNBOOTABLE.search(record.text)):
        return f"its firmware finds nothing to boot on the disk: {said[0]}"
    return _verdict(record) or None


def _verdict(record: Record) -> str | None:
    """Return "" for a guest that is up, why it never will be, or None while neither is known."""
    if record.lane is Lane.SERVICE:
        if record.text == READY:
            return ""
        if record.text.startswith("init: failed"):
            return f"its init says {record.text.removeprefix('init: ')!r}"
    if record.lane in (Lane.CONSOLE, Lane.KERNEL) and (panic := _PANIC.search(record.text)):
        return f"its kernel panicked: {panic['why']}"
    if record.event == "GUEST_PANICKED":
        return _PANICKED
    if record.event == "SHUTDOWN":
        return "it shut down"
    return None


def _phase(timeline: Timeline, since: int) -> str:
    if said := timeline.since(since, Lane.SERVICE):
        return said[-1].text
    if timeline.since(since, Lane.KERNEL, Lane.CONSOLE):
        return "the kernel or its firmware wrote to the console, init never started"
    return "nothing was ever written to the console"


def _panic_words(timeline: Timeline, since: int) -> str:
    """Return why the guest's kernel panicked: it wrote that before QEMU told of it, but through another stream."""

    def words(record: Record) -> str | None:
        verdict = _verdict(record)
        return verdict if verdict and record.lane is not Lane.EVENT else None

    with suppress(DeadlineExpired):
        return timeline.wait(words, since=since, deadline=Deadline(_STRAGGLER_SECONDS), what="the words of a panic")
    return _PANICKED


def _report(timeline: Timeline, since: int, failure: str) -> str:
    last = "\n".join(f"  {record}" for record in timeline.since(since)[-12:])
    return f"the guest did not come up: {failure}. Last sign of life: {_phase(timeline, since)}. The timeline's end:\n{last}"
