"""A server's own log: every message in order, on the timeline of the machine that it serves."""

from __future__ import annotations

import time
from typing import Any, Final

from pytest_spapr.timeline import Lane, Record, Timeline
from pytest_spapr.vfio.fault import Fault
from pytest_spapr.vfio.function import Function
from pytest_spapr.vfio.protocol import ACCESS, CONFIG, HEADER, IRQ_SET, Command, Flag, Irq, Malformed, Message

_SHOWN: Final = 16
# The guest's IOMMU maps and unmaps page by page, thousands in a row.
_COUNTED: Final = (Command.DMA_MAP, Command.DMA_UNMAP)
_REST_SECONDS: Final = 0.1


class Journal:
    """Writes to one machine's timeline. Messages of DMA are counted, not listed. :ivar name: whose it is."""

    def __init__(self, name: str, timeline: Timeline) -> None:
        self.name = name
        self._timeline = timeline
        self._run = (0, 0)
        self.due: float | None = None

    def note(self, text: str, **data: Any) -> None:
        """Write one line. :param data: for machines, and behind the text for people."""
        self.flush()
        self._write(text, data)

    def message(self, message: Message, function: Function, answer: bytes | None, fault: Fault | None) -> None:
        """Write what came and what it is answered."""
        if message.command in _COUNTED and fault is None:
            self.counted(Command(message.command))
            return
        self.flush()
        data: dict[str, Any] = {"command": message.name, **_details(message, function, answer)}
        if fault is not None:
            data["fault"] = str(fault.wrong)
        if answer is not None and (number := _error(answer)):
            data["errno"] = number
        self._write(message.name, data)

    def counted(self, command: Command) -> None:
        """Count a message of a kind that comes in thousands; their number is written when another one comes, or none for a while."""
        last, number = self._run
        if last != command:
            self.flush()
            number = 0
        self._run = command, number + 1
        self.due = time.monotonic() + _REST_SECONDS

    def flush(self) -> None:
        """Write what was only counted up to now."""
        command, number = self._run
        self._run, self.due = (0, 0), None
        if number:
            name = Command(command).name
            self._write(name, {"command": name, "count": number})

    def flush_when_due(self) -> None:
        if self.due is not None and time.monotonic() >= self.due:
            self.flush()

    def since(self, cursor: int) -> list[Record]:
        """Return what was written since the cursor of the timeline."""
        return [record for record in self._timeline.since(cursor, Lane.VFIO) if (record.data or {}).get("function") == self.name]

    def _write(self, text: str, data: dict[str, Any]) -> None:
        shown = " ".join(f"{key}={value}" for key, value in data.items() if key != "command")
        self._timeline.record(Lane.VFIO, f"{self.name}: {text} {shown}".rstrip(), {"function": self.name, **data})


def _details(message: Message, function: Function, answer: bytes | None) -> dict[str, Any]:
    match message.command:
        case Command.REGION_READ | Command.REGION_WRITE:
            try:
                region, offset, _ = function.access(message)
            except Malformed as error:
                return {"wrong": str(error)}
            whole = message.body if message.command == Command.REGION_WRITE else (answer or b"")[HEADER.size :]
            place = "config" if region == CONFIG else f"bar{region}"
            return {"at": f"{place}+{offset:#x}", "bytes": whole[ACCESS.size :][:_SHOWN].hex()}
        case Command.SET_IRQS if len(message.body) >= IRQ_SET.size:
            _, flags, index, start, number = IRQ_SET.unpack_from(message.body)
            name = Irq(index).name if index < len(Irq) else str(index)
            return {"irq": name, "start": start, "count": number, "flags": f"{flags:#x}"}
    return {}


def _error(answer: bytes) -> int:
    flags, number = HEADER.unpack_from(answer)[3:]
    return number if flags & Flag.ERROR else 0
