"""What a guest says to the host of its own accord, line by line, by the channel that it comes through."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from pytest_spapr.guest.kernel_log import kmsg_text
from pytest_spapr.timeline import Lane, Timeline


def listeners(timeline: Timeline) -> Mapping[str, Callable[[str], None]]:
    """Return, for each of the channels ``console``, ``kernel`` and ``service``, what puts a line of it on the timeline."""

    def hear_console(line: str) -> None:
        timeline.record(Lane.CONSOLE, line)

    def hear_kernel(line: str) -> None:
        # Lines that begin with a space carry a record's properties (" SUBSYSTEM=pci"), which nobody asked for.
        if not line.startswith(" "):
            timeline.record(Lane.KERNEL, kmsg_text(line))

    def hear_service(line: str) -> None:
        timeline.record(Lane.SERVICE, line)

    return {"console": hear_console, "kernel": hear_kernel, "service": hear_service}
