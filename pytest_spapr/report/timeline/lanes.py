"""The lanes as people see them: their names, order and colours, what belongs together in them, and where a record is loud."""

from __future__ import annotations

import re
from collections import defaultdict, deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from pytest_spapr.timeline import Lane, Record


@dataclass(frozen=True, slots=True)
class Track:
    """A lane in pictures. :ivar light: :ivar dark: its colour on a light and on a dark ground."""

    lane: Lane
    label: str
    short: str
    light: str
    dark: str


#: From what the test did, through QEMU, to the guest.
TRACKS: Final = (
    Track(Lane.STEP, "test steps", "test", "#4a5565", "#aab4c3"),
    Track(Lane.QMP, "QMP commands", "QMP", "#2f6db5", "#6aa9f0"),
    Track(Lane.EVENT, "QMP events", "events", "#c2480e", "#f0894f"),
    Track(Lane.DRC, "DRC states", "DRC", "#2a7f4f", "#5bbd86"),
    Track(Lane.STDERR, "QEMU stderr", "stderr", "#c22f3b", "#f07580"),
    Track(Lane.KERNEL, "guest kernel", "kernel", "#7453b8", "#ae92ec"),
    Track(Lane.SERVICE, "rtas_errd, drmgr", "drmgr", "#9a6a0b", "#dcae4e"),
    Track(Lane.SSH, "ssh", "ssh", "#0c7c7e", "#4fc1c3"),
    Track(Lane.SHELL, "console shell", "shell", "#46808f", "#82bccb"),
    Track(Lane.CONSOLE, "console", "console", "#727a86", "#8d97a5"),
    Track(Lane.LIBVIRT, "libvirt", "libvirt", "#667a1f", "#b0c766"),
    Track(Lane.VFIO, "vfio-user", "vfio", "#a04b78", "#e08fb8"),
    Track(Lane.HOST, "host", "host", "#8a5a44", "#c99a80"),
)
NUMBERS: Final = {track.lane: number for number, track in enumerate(TRACKS)}

_LOUD: Final = re.compile(
    r"failed: |verdict: |unplug |plug |follow |system_reset|migrate|guest reboot|the test begins|DEVICE_|MEM_|GUEST_P|RESET|SHUT"
)


def loud(record: Record) -> bool:
    """Return whether a step or an event is one that a reader looks for first; its words get room before others' do."""
    return record.lane in (Lane.STEP, Lane.EVENT) and _LOUD.match(record.text) is not None


def pairs(records: Iterable[Record]) -> Iterator[tuple[int, int]]:
    """Yield (command, reply) by their ``seq``: of QMP by the command's id, of shells in order."""
    sent: dict[object, int] = {}
    running: dict[Lane, deque[int]] = defaultdict(deque)
    for record in records:
        if record.lane is Lane.QMP and record.data is not None:
            number = record.data.get("id")
            if "execute" in record.data or "exec-oob" in record.data:
                sent[number] = record.seq
            elif ("return" in record.data or "error" in record.data) and number in sent:
                yield sent.pop(number), record.seq
        elif record.lane in (Lane.SSH, Lane.SHELL):
            if record.text.startswith("$ "):
                running[record.lane].append(record.seq)
            elif record.text.startswith("= ") and running[record.lane]:
                yield running[record.lane].popleft(), record.seq


def used(runs: Sequence[Sequence[Record]]) -> list[Track]:
    """Return the tracks that any of these runs has records for, in order."""
    found = {record.lane for records in runs for record in records}
    return [track for track in TRACKS if track.lane in found]
