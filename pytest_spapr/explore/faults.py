"""What can be the matter with a guest in a history: how a machine gets it, how a test and how a shell does."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Final

from pytest_spapr.hotplug.pseries import PseriesMachine

_INJECTION: Final = "/sys/kernel/debug/notifier-error-inject/memory/actions/MEM_GOING_OFFLINE/error"


@dataclass(frozen=True, slots=True)
class Fault:
    """Something that can be the matter with a guest.

    :ivar made: has it for a ``with`` block. :ivar code: the same for a test. :ivar on: :ivar off: for the guest's shell.
    """

    made: Callable[[PseriesMachine], AbstractContextManager[None]]
    code: str
    on: str
    off: str


#: By name.
FAULTS: Final[Mapping[str, Fault]] = {
    "CPU 0 offline": Fault(
        lambda machine: machine.guest.cpus.offline(0),
        "machine.guest.cpus.offline(0)",
        "echo 0 > /sys/devices/system/cpu/cpu0/online",
        "echo 1 > /sys/devices/system/cpu/cpu0/online",
    ),
    "offline refused": Fault(
        lambda machine: machine.guest.memory.offline_refused(),
        "machine.guest.memory.offline_refused()",
        f"modprobe memory-notifier-error-inject; echo -12 > {_INJECTION}",
        f"echo 0 > {_INJECTION}",
    ),
    "rtas_errd killed": Fault(
        lambda machine: machine.guest.rtas_errd.killed(),
        "machine.guest.rtas_errd.killed()",
        "killall -KILL rtas_errd",
        "rtas_errd",
    ),
    "drmgr locked": Fault(
        lambda machine: machine.guest.drmgr.lock_held(),
        "machine.guest.drmgr.lock_held()",
        "mkfifo /run/prompt; (exec 9<>/run/prompt; drmgr -c pci -i -s C0 <&9) > /dev/null 2>&1 &",
        "echo > /run/prompt; rm /run/prompt",
    ),
}
