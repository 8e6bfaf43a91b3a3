"""Timelines for tests, written as a run would have them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pytest_spapr.qemu.qmp import event_text
from pytest_spapr.qemu.trace import parse_drc_event
from pytest_spapr.report.timeline.run import Run
from pytest_spapr.timeline import Lane, Record, Timeline

HEARS_ALL = frozenset({"core-refusal-heard", "dimm-refusal-heard", "dimm-reconfigure-heard"})
CORE, CARD = 0x10000008, 0x40000008


class Script:
    """Writes a timeline whose clock is set by hand. :ivar now: seconds."""

    def __init__(self) -> None:
        self.now = 0.0
        self.timeline = Timeline(clock=lambda: self.now)
        self._commands = 0

    def at(self, seconds: float) -> Script:
        self.now = seconds
        return self

    def step(self, text: str, data: dict[str, Any] | None = None) -> Record:
        return self.timeline.record(Lane.STEP, text, data)

    def qmp(self, command: str, arguments: dict[str, Any] | None = None, *, error: str = "") -> None:
        number = f"__qmp#{self._commands:05}"
        self._commands += 1
        sent: dict[str, Any] = {"execute": command, "id": number} | ({} if arguments is None else {"arguments": arguments})
        told = "" if arguments is None else f" {json.dumps(arguments)}"
        self.timeline.record(Lane.QMP, f"-> {command}{told}", sent)
        self.now += 0.001
        if error:
            answer = {"error": {"class": "GenericError", "desc": error}, "id": number}
            self.timeline.record(Lane.QMP, f"<- error GenericError: {error}", answer)
        else:
            self.timeline.record(Lane.QMP, "<- {}", {"return": {}, "id": number})

    def event(self, name: str, **about: Any) -> dict[str, Any]:
        event = {"event": name, "timestamp": {"seconds": 1700000000 + int(self.now), "microseconds": 5}, "data": about}
        self.timeline.record(Lane.EVENT, event_text(event), event)
        return event

    def drc(self, index: int, *lines: str) -> None:
        """``attach``, ``isolation 1``, ``allocation 0``, ``configured``..."""
        names = {"isolation": "set_isolation_state", "allocation": "set_allocation_state", "configured": "set_configured"}
        for line in lines:
            name, *state = line.split()
            text = f"spapr_drc_{names.get(name, name)} drc: {index:#x}" + "".join(f", state: 0x{one}" for one in state)
            self.timeline.record(Lane.DRC, text, parse_drc_event(text))
            self.now += 0.001

    def run(self, name: str = "") -> Run:
        return Run(self.timeline.since(), name)

    def write(self, directory: Path) -> Path:
        directory.mkdir(parents=True, exist_ok=True)
        self.timeline.write(directory / "timeline.jsonl", directory / "timeline.txt")
        return directory / "timeline.jsonl"


ABOUT = {
    "qemu": "QEMU 11.1.3",
    "accel": "tcg",
    "image": "debian-12",
    "kernel": "Linux 6.1.0-50-powerpc64le",
    "features": sorted(HEARS_ALL),
}


def refused_core(*, heard: bool = True, start: float = 0.0, queries: int = 1) -> Script:
    """A core that comes, and whose removal the guest refuses; a QEMU that does not hear it tells nothing."""
    script = Script().at(start)
    script.drc(0x10000000, "attach")
    script.qmp("cont")
    script.step("machine for test_cores.py::test_it", ABOUT)
    script.step("the test begins")
    script.at(start + 1).step("plug core core1")
    script.qmp("device_add", {"driver": "power9-spapr-cpu-core", "id": "core1"})
    script.drc(CORE, "attach", "allocation 1", "isolation 1", "configured")
    for _ in range(queries):
        script.qmp("query-status")
    script.at(start + 2).step("unplug core core1")
    script.qmp("device_del", {"id": "core1"})
    script.drc(CORE, "unplug_request", "awaiting_quiesce")
    script.timeline.record(Lane.KERNEL, "pseries-hotplug-cpu: Failed to offline CPU 8, rc: -16")
    script.drc(CORE, "isolation 1")
    if heard:
        script.event("DEVICE_UNPLUG_GUEST_ERROR", device="core1", path="/machine/peripheral/core1")
    script.at(start + 3).step(f"verdict: core core1: {'REFUSED' if heard else 'PENDING'} after {start + 0.412:.3f} s")
    return script
