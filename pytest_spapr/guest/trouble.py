"""What a guest's kernel says of its own trouble: oopses, panics, lockups, stalls, tasks that hang.

Read from the console, which has it also where nobody in the guest is left to pass its log on; from the log where the console is silent.
Not counted are warnings: a kernel goes on after them as if nothing had been.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from pytest_spapr.timeline import Lane, Record

#: What stands before a line of the kernel's on its console.
STAMP: Final = re.compile(r"^\[ *\d+\.\d+\](?:\[[^]]*\])? ")
_BEGINS: Final = re.compile(
    r"Kernel panic - not syncing: |Oops: |kernel BUG at |BUG: |Unable to handle kernel |watchdog: .*(?:stuck for|LOCKUP)"
    r"|(?:rcu: )?INFO: .*(?:detected.* stall|blocked for more than)"
)
_OOPS: Final = re.compile(r"Oops: ")
_TASK: Final = re.compile(r"CPU: \d+ .*Comm: (?P<task>.+?) (?:Not tainted|Tainted|Kdump)")
_QUEUE: Final = re.compile(r"Workqueue: (?P<queue>.+) \S+$")
_PLACE: Final = re.compile(r"NIP \[[0-9a-f]+\] (?P<place>\S+)")
_ENDS: Final = "---[ end trace "
# What does a guest's part of the hotplug of all but PCI devices and PHBs [arch/powerpc/platforms/pseries/dlpar.c]; "workque" in 6.1,
# "workqueue" in 6.12.
_HOTPLUG_QUEUE: Final = re.compile(r"pseries hotplug workque(ue)?")


@dataclass(slots=True)
class Trouble:
    """One trouble. :ivar words: the kernel's first ones. :ivar oops: who came there is dead.

    :ivar task: the task that it came to. :ivar queue: the workqueue that this worked on. :ivar place: the function that it was in.
    """

    words: str
    oops: bool = False
    task: str | None = None
    queue: str | None = None
    place: str | None = None

    @property
    def ends_hotplug(self) -> bool:
        """Whether nothing becomes of a hotplug event any more: who worked on it is dead, and its queue is an ordered one."""
        return self.oops and self.queue is not None and _HOTPLUG_QUEUE.fullmatch(self.queue) is not None

    def __str__(self) -> str:
        task = f", task {self.task}" if self.task else ""
        return self.words + (f" in {self.place}" if self.place else "") + task + (f" on the {self.queue}" if self.queue else "")


def troubles(records: Sequence[Record]) -> list[Trouble]:
    """Return each trouble that these records tell of."""
    return _read(_console(records)) or _read(record.text for record in records if record.lane is Lane.KERNEL)


def ends_trace(record: Record) -> bool:
    """Return whether all that the kernel says of an oops, or of a warning, has been said with this record."""
    return record.lane in (Lane.CONSOLE, Lane.KERNEL) and _ENDS in record.text


def _console(records: Iterable[Record]) -> Iterable[str]:
    # Anybody may write to a console; what the kernel writes has its time.
    return (STAMP.sub("", record.text) for record in records if record.lane is Lane.CONSOLE and STAMP.match(record.text))


def _read(lines: Iterable[str]) -> list[Trouble]:
    found: list[Trouble] = []
    # One whose trace has not ended: what follows is about it.
    current: Trouble | None = None
    for line in lines:
        if _BEGINS.match(line) and not (current is not None and _OOPS.match(line) and not current.oops):
            current = Trouble(line.strip())
            found.append(current)
        if current is None:
            continue
        current.oops = current.oops or _OOPS.match(line) is not None
        current.task = current.task or _named(_TASK, line)
        current.queue = current.queue or _named(_QUEUE, line)
        current.place = current.place or _named(_PLACE, line)
        if line.startswith(_ENDS):
            current = None
    return found


def _named(pattern: re.Pattern[str], line: str) -> str | None:
    match = pattern.match(line)
    return match[1] if match else None
