"""Whether a guest comes up: read from what its kernel and its init say, and from QEMU's events."""

from __future__ import annotations

import re
from contextlib import suppress
from typing import Final

from pytest_spapr.deadline import Deadline
from pytest_spapr.errors import BootFailed, DeadlineExpired
from pytest_spapr.timeline import Lane, Record, Timeline

READY: Final = "init: ready"
STARTED: Final = "init: started"

_PANIC: Final = re.compile(r"Kernel panic - not syncing: (?P<why>.*)")
_PANICKED: Final = "its kernel panicked (GUEST_PANICKED)"
# For what was written through one stream before something was told through another.
_STRAGGLER_SECONDS: Final = 1.0


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
