"""A small NVMe controller, which every Linux has a driver for: MSI-X, queues in the guest's memory, and data by DMA both ways.

One namespace in the test's memory, an admin queue and one pair of I/O queues; NVM Express 1.4, sections in the comments. What goes through
it can be held against what came in: a byte that DMA got wrong does not stay hidden.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from pytest_spapr.vfio.dma import DmaError
from pytest_spapr.vfio.model import Model
from pytest_spapr.vfio.protocol import Irq

_BAR: Final = 0
_BAR_SIZE: Final = 0x4000
_DOORBELLS: Final = 0x1000
_TABLE: Final = 0x2000
_PENDING: Final = 0x3000
_VECTORS: Final = 2
_PAGE: Final = 4096
_ENTRY: Final = 64
_COMPLETION: Final = 16
_BLOCK: Final = 512
_SERIAL: Final = b"pytest-spapr"

# 3.1: registers.
_CAP: Final = 0x00
_VS: Final = 0x08
_CC: Final = 0x14
_CSTS: Final = 0x1C
_AQA: Final = 0x24
_ASQ: Final = 0x28
_ACQ: Final = 0x30
_QUEUE_ENTRIES: Final = 64
# Contiguous queues of so many entries, ready within 0.5 s for each of 20, doorbells of 4 bytes, the NVM command set, pages of 4 KiB.
_CAPABILITIES: Final = _QUEUE_ENTRIES - 1 | 1 << 16 | 20 << 24 | 1 << 37
_VERSION: Final = 0x00010400
_ENABLE: Final = 0x1
_SHUTDOWN: Final = 0xC000
_READY: Final = 0x1
_FATAL: Final = 0x2
_SHUT: Final = 0x8
_READ_ONLY: Final = frozenset((*range(_CAP, _VS + 4), *range(_CSTS, _CSTS + 4)))

_ASYNCHRONOUS_EVENT: Final = 0x0C

# 4.6.1.2: status codes, with the bit that tells the host not to try again.
_INVALID_OPCODE: Final = 0x4001
_INVALID_FIELD: Final = 0x4002
_TRANSFER_ERROR: Final = 0x0004
_OUT_OF_RANGE: Final = 0x4080
_INVALID_QUEUE: Final = 0x4101


class _Refused(Exception):
    """A command that is answered with a status. :ivar status: which."""

    def __init__(self, status: int) -> None:
        super().__init__(f"{status:#x}")
        self.status = status


@dataclass(slots=True)
class _Ring:
    """A queue in the guest's memory. :ivar at: :ivar end: where its reader or writer in the device is, and in the guest."""

    address: int
    size: int
    vector: int = 0
    completions: int = 0
    at: int = 0
    end: int = 0
    phase: int = 1


@dataclass(frozen=True, slots=True)
class _Command:
    opcode: int
    id: int
    namespace: int
    prp1: int
    prp2: int
    dwords: tuple[int, ...]

    @classmethod
    def parse(cls, entry: bytes) -> _Command:
        opcode, _, number, namespace = struct.unpack_from("<BBHI", entry)
        prp1, prp2 = struct.unpack_from("<QQ", entry, 24)
        return cls(opcode, number, namespace, prp1, prp2, struct.unpack_from("<6I", entry, 40))


class Nvme(Model):
    """A controller with one namespace.

    :param size: bytes of the namespace. :param vectors: of MSI-X; 0 for INTx.
    :ivar data: what is on it; it outlives resets. :ivar flushes: how often it was told to flush.
    """

    def __init__(self, size: int = 4 << 20, *, vectors: int = _VECTORS) -> None:
        bars = {_BAR: (_BAR_SIZE, False)}
        super().__init__((0x1B36, 0x0010), 0x010802, bars, vectors=vectors, table=(_BAR, _TABLE, _PENDING))
        self.data = bytearray(size)
        self.flushes = 0
        self._admin: dict[int, Callable[[_Command], int]] = {
            0x00: self._delete_queue,
            0x01: self._create_submission,
            0x04: self._delete_queue,
            0x05: self._create_completion,
            0x06: self._identify,
            0x09: self._features,
            0x0A: self._features,
        }
        self._io: dict[int, Callable[[_Command], int]] = {0x00: self._flush, 0x01: self._write_blocks, 0x02: self._read_blocks}
        self.reset()

    def reset(self) -> None:
        self._registers = bytearray(_DOORBELLS)
        struct.pack_into("<QI", self._registers, _CAP, _CAPABILITIES, _VERSION)
        self._submissions: dict[int, _Ring] = {}
        self._completions: dict[int, _Ring] = {}

    def read(self, region: int, offset: int, count: int) -> bytes:  # noqa: ARG002 - it has but one BAR
        return bytes(self._registers[offset : offset + count]).ljust(count, b"\0")

    def write(self, region: int, offset: int, data: bytes) -> None:  # noqa: ARG002 - it has but one BAR
        if _DOORBELLS <= offset < _TABLE:
            self._ring(offset - _DOORBELLS, int.from_bytes(data, "little"))
            return
        for index, byte in enumerate(data, start=offset):
            if index < _DOORBELLS and index not in _READ_ONLY:
                self._registers[index] = byte
        if offset <= _CC < offset + len(data):
            self._configure()

    def work(self) -> None:
        """Take commands out of all queues and answer them."""
        try:
            for number in list(self._submissions):
                while (ring := self._submissions.get(number)) is not None and ring.at != ring.end:
                    self._serve(number, ring)
        except DmaError:
            # 9.5: what it cannot even fetch or complete.
            self._set_status(_READY | _FATAL)
            self._submissions.clear()

    def _register(self, offset: int, layout: str = "<I") -> int:
        return int(struct.unpack_from(layout, self._registers, offset)[0])

    def _set_status(self, status: int) -> None:
        struct.pack_into("<I", self._registers, _CSTS, status)

    def _configure(self) -> None:
        """3.1.5: take note of what was written to the controller configuration."""
        wanted, status = self._register(_CC), self._register(_CSTS)
        if wanted & _SHUTDOWN:
            self._set_status(status | _SHUT)
        elif wanted & _ENABLE and not status & _READY:
            sizes = self._register(_AQA)
            self._completions[0] = _Ring(self._register(_ACQ, "<Q"), (sizes >> 16 & 0xFFF) + 1)
            self._submissions[0] = _Ring(self._register(_ASQ, "<Q"), (sizes & 0xFFF) + 1)
            self._set_status(_READY)
        elif not wanted & _ENABLE:
            self._submissions.clear()
            self._completions.clear()
            self._set_status(0)

    def _ring(self, offset: int, value: int) -> None:
        """3.1.24: a doorbell. Those of completion queues say how much the guest has read."""
        number, completions = divmod(offset // 4, 2)
        ring = (self._completions if completions else self._submissions).get(number)
        if ring is not None and value < ring.size:
            ring.end = value
        if completions:
            self._signal()

    def _serve(self, number: int, ring: _Ring) -> None:
        command = _Command.parse(self.port.read(ring.address + ring.at * _ENTRY, _ENTRY))
        ring.at = (ring.at + 1) % ring.size
        result, status = 0, 0
        try:
            if number == 0 and command.opcode == _ASYNCHRONOUS_EVENT:
                # 5.2: there is never one to be told.
                return
            act = (self._admin if number == 0 else self._io).get(command.opcode)
            if act is None:
                raise _Refused(_INVALID_OPCODE)
            result = act(command)
        except _Refused as refused:
            status = refused.status
        except DmaError:
            status = _TRANSFER_ERROR
        self._complete(number, ring, command, result, status)

    def _complete(self, number: int, ring: _Ring, command: _Command, result: int, status: int) -> None:
        """4.6: write a completion and say so."""
        target = self._completions.get(ring.completions)
        if target is None:
            return
        entry = struct.pack("<IIHHHH", result, 0, ring.at, number, command.id, status << 1 | target.phase)
        self.port.write(target.address + target.at * _COMPLETION, entry)
        target.at += 1
        if target.at == target.size:
            target.at, target.phase = 0, target.phase ^ 1
        self._signal(target)

    def _signal(self, completed: _Ring | None = None) -> None:
        """Tell the guest of a completion; by INTx as long as there is one that it has not read."""
        if not self.irqs[Irq.MSIX]:
            self.port.level(high=any(ring.at != ring.end for ring in self._completions.values()))
        elif completed is not None:
            self.port.interrupt(Irq.MSIX, completed.vector)

    def _create_completion(self, command: _Command) -> int:
        number, size = command.dwords[0] & 0xFFFF, (command.dwords[0] >> 16) + 1
        if number != 1 or size > _QUEUE_ENTRIES:
            raise _Refused(_INVALID_QUEUE)
        self._completions[number] = _Ring(command.prp1, size, vector=command.dwords[1] >> 16)
        return 0

    def _create_submission(self, command: _Command) -> int:
        number, size = command.dwords[0] & 0xFFFF, (command.dwords[0] >> 16) + 1
        completions = command.dwords[1] >> 16
        if number != 1 or size > _QUEUE_ENTRIES or completions not in self._completions:
            raise _Refused(_INVALID_QUEUE)
        self._submissions[number] = _Ring(command.prp1, size, completions=completions)
        return 0

    def _delete_queue(self, command: _Command) -> int:
        queues = self._submissions if command.opcode == 0x00 else self._completions
        if queues.pop(command.dwords[0] & 0xFFFF, None) is None:
            raise _Refused(_INVALID_QUEUE)
        return 0

    def _features(self, _: _Command) -> int:
        # 5.21.1.7, the one that drivers need: one I/O queue of each kind, counted from 0.
        return 0

    def _identify(self, command: _Command) -> int:
        """5.15."""
        page = bytearray(_PAGE)
        match command.dwords[0] & 0xFF:
            case 0x00:
                blocks = len(self.data) // _BLOCK
                struct.pack_into("<QQQ", page, 0, blocks, blocks, blocks)
                page[130] = _BLOCK.bit_length() - 1
            case 0x01:
                struct.pack_into(
                    "<HH20s40s8s", page, 0, 0x1B36, 0x1AF4, _SERIAL.ljust(20), b"vfio-user disk".ljust(40), b"1".ljust(8)
                )
                page[77] = 3  # 32 KiB in one command
                struct.pack_into("<HI", page, 78, 1, _VERSION)
                page[512], page[513] = 0x66, 0x44
                struct.pack_into("<I", page, 516, 1)
                page[525] = 0x1  # a volatile write cache: so that it is told to flush
                struct.pack_into("256s", page, 768, b"nqn.2016-06.io.spapr:" + _SERIAL)
            case 0x02:
                struct.pack_into("<I", page, 0, 1 if command.namespace < 1 else 0)
            case 0x03:
                # 5.15.2.4: the namespace's identifier, an EUI-64.
                struct.pack_into("<BBBB8s", page, 0, 1, 8, 0, 0, _SERIAL[:8])
            case _:
                raise _Refused(_INVALID_FIELD)
        self._to_guest(command, bytes(page))
        return 0

    def _flush(self, _: _Command) -> int:
        self.flushes += 1
        return 0

    def _write_blocks(self, command: _Command) -> int:
        start, size = self._range(command)
        done = start
        for address, count in self._pieces(command, size):
            self.data[done : done + count] = self.port.read(address, count)
            done += count
        return 0

    def _read_blocks(self, command: _Command) -> int:
        start, size = self._range(command)
        self._to_guest(command, bytes(self.data[start : start + size]))
        return 0

    def _range(self, command: _Command) -> tuple[int, int]:
        start = (command.dwords[1] << 32 | command.dwords[0]) * _BLOCK
        size = ((command.dwords[2] & 0xFFFF) + 1) * _BLOCK
        if start + size > len(self.data):
            raise _Refused(_OUT_OF_RANGE)
        return start, size

    def _to_guest(self, command: _Command, data: bytes) -> None:
        done = 0
        for address, count in self._pieces(command, len(data)):
            self.port.write(address, data[done : done + count])
            done += count

    def _pieces(self, command: _Command, size: int) -> Iterator[tuple[int, int]]:
        """4.3: yield the addresses and sizes of a command's data: the first page, and one more, or a list of them."""
        first = min(size, _PAGE - command.prp1 % _PAGE)
        yield command.prp1, first
        rest = size - first
        if rest > _PAGE:
            # No list is longer than a page: 32 KiB has eight entries.
            entries = -(-rest // _PAGE)
            for (address,) in struct.iter_unpack("<Q", self.port.read(command.prp2, 8 * entries)):
                count = min(rest, _PAGE)
                yield address, count
                rest -= count
        elif rest:
            yield command.prp2, rest
