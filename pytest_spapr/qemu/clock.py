"""QEMU's virtual clock, which a machine's timers run by: the host's clock without the time in which the machine stood still."""

from __future__ import annotations

from pytest_spapr.timeline import Lane, Timeline


def virtual_seconds(timeline: Timeline, since: int) -> float:
    """Return how far a machine's virtual clock went on since the cursor, up to now.

    As exact as the arrival of QEMU's STOP and RESUME, which come together where the devices' state is read: those 0.02 s are not seen.
    """
    begin = min((record.time for record in timeline.since(since)), default=timeline.now)
    # Every machine starts at -S.
    running, passed, last = False, 0.0, begin
    for record in timeline.since(0, Lane.EVENT, Lane.QMP):
        event = record.data.get("event") if record.data is not None else None
        if event not in ("STOP", "RESUME"):
            continue
        if record.seq >= since:
            passed += record.time - last if running else 0.0
            last = record.time
        running = event == "RESUME"
    return passed + (timeline.now - last if running else 0.0)
