"""What the benchmark ran on, and how busy that was with other things. Never its name, and no paths."""

from __future__ import annotations

import os
import re
import resource
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

_MODEL: Final = re.compile(r"^(?:model name|cpu)\s*:\s*(?P<model>.+?)\s*$", re.MULTILINE)
_PATH: Final = re.compile(r"(?<![\w.:/])(?:/[\w.+@~-]+){2,}/?")
_BUSY: Final = 0.1
_LOADED: Final = 0.5
# The fields of /proc/stat's first line that are no work of anybody here: idle, iowait, steal, and guest time, which is in user time.
_USER, _NICE, _SYSTEM, _IRQ, _SOFTIRQ = 0, 1, 2, 5, 6


def facts() -> dict[str, Any]:
    """Return what this host is."""
    system = os.uname()
    return {
        "cpu": cpu_model(Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")) or system.machine,
        "cpus": len(os.sched_getaffinity(0)),
        "memory_mb": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 1_000_000,
        "kernel": f"{system.sysname} {system.release} {system.machine}",
        "load_at_start": round(os.getloadavg()[0], 2),
    }


def describe(found: dict[str, Any]) -> str:
    """Return the facts in a line."""
    return f"{found['cpu']}, {found['cpus']} CPUs, {found['memory_mb'] / 1000:.1f} GB, {found['kernel']}, load {found['load_at_start']}"


def loaded(found: dict[str, Any]) -> str | None:
    """Return a warning if the host was busy at the start."""
    load = found["load_at_start"]
    if load <= _LOADED:
        return None
    return f"this host is busy (load {load}): times are longer than they need be, and ratios blurred"


def cpu_model(cpuinfo: str) -> str | None:
    """Return the processor's name from the text of ``/proc/cpuinfo``."""
    match = _MODEL.search(cpuinfo)
    return " ".join(match["model"].split()) if match else None


@dataclass(frozen=True, slots=True)
class Used:
    """CPU seconds used so far. :ivar all: by everybody on this host. :ivar own: by this process and its children that ended."""

    at: float
    all: float
    own: float

    @classmethod
    def now(cls) -> Used:
        words = Path("/proc/stat").read_text(encoding="ascii").splitlines()[0].split()[1:]
        ticks = sum(int(words[index]) for index in (_USER, _NICE, _SYSTEM, _IRQ, _SOFTIRQ))
        own = 0.0
        for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN):
            usage = resource.getrusage(who)
            own += usage.ru_utime + usage.ru_stime
        return cls(time.monotonic(), ticks / os.sysconf("SC_CLK_TCK"), own)


def others_share(before: Used, after: Used, cpus: int) -> float:
    """Return which part of the CPU time between two moments others used, from 0 to 1."""
    available = (after.at - before.at) * cpus
    used = (after.all - before.all) - (after.own - before.own)
    return min(1.0, max(0.0, used / available)) if available > 0 else 0.0


def disturbed(share: float) -> str | None:
    """Return a warning if others used much."""
    if share <= _BUSY:
        return None
    return f"others used {share:.0%} of this host's CPU time meanwhile: take no figure of this run for the host's own"


def without_paths(text: str) -> str:
    """Return the first line of an error, without the paths of this host."""
    lines = text.splitlines()
    return _PATH.sub("<path>", lines[0]) if lines else ""
