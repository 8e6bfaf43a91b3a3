"""The guest's memory as a device sees it: what a client has mapped for DMA, read and written through the files that it passed.

The files are read and written, not mapped: a file that shrinks is an error of a call then, not the death of the test's process.
"""

from __future__ import annotations

import errno
import os
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from pytest_spapr.vfio.protocol import READABLE, WRITABLE, Malformed

_TOP: Final = 1 << 64
_OFFSETS: Final = 1 << 63


class DmaError(Exception):
    """A device used an address that it may not use, or that its client does not serve."""


@dataclass(frozen=True, slots=True)
class Mapping:
    """A piece of the device's address space. :ivar file: the number of the file that it is in, or None: by message only."""

    address: int
    size: int
    offset: int
    flags: int
    file: tuple[int, int] | None


class DmaMap:
    """All that is mapped now. It owns one descriptor of each file, however many pieces are in it."""

    def __init__(self) -> None:
        self._mappings: dict[int, Mapping] = {}
        self._sorted: list[int] | None = []
        self._files: dict[tuple[int, int], tuple[int, int]] = {}

    def __len__(self) -> int:
        return len(self._mappings)

    def add(self, address: int, size: int, offset: int, flags: int, descriptor: int | None) -> None:
        """Map a piece. Takes the descriptor, also where it raises.

        :raises Malformed: it is no piece of an address space, or overlaps one that is mapped.
        """
        file = None if descriptor is None else self._hold(descriptor)
        try:
            if not 0 < size <= _TOP - address or offset >= _OFFSETS or not flags & (READABLE | WRITABLE):
                raise Malformed(f"a mapping of {size:#x} bytes at {address:#x}, offset {offset:#x}, flags {flags:#x}")
            if (below := self._below(address + size - 1)) is not None and below.address + below.size > address:
                raise Malformed(f"{address:#x} is mapped already", errno.EEXIST)
        except Malformed:
            self._drop(file)
            raise
        self._mappings[address] = Mapping(address, size, offset, flags, file)
        self._sorted = None

    def remove(self, address: int, size: int) -> int:
        """Unmap all pieces that lie in a range, and return how many there were."""
        # Most often it is just one, and there are thousands.
        if (exact := self._mappings.get(address)) is not None and exact.size == size:
            found = [exact]
        else:
            found = [
                one for one in self._mappings.values() if address <= one.address and one.address + one.size <= address + size
            ]
        for one in found:
            del self._mappings[one.address]
            self._drop(one.file)
            self._sorted = None
        return len(found)

    def clear(self) -> None:
        """Unmap everything and close all files."""
        self._mappings.clear()
        self._sorted = []
        for descriptor, _ in self._files.values():
            os.close(descriptor)
        self._files.clear()

    def read(self, address: int, count: int) -> bytes | None:
        """Return what is there, or None where the client passed no file for it.

        :raises DmaError: it is not mapped to be read.
        """
        parts = []
        for one, start, size in self._pieces(address, count, READABLE):
            if one.file is None:
                return None
            data = os.pread(self._files[one.file][0], size, one.offset + start)
            if len(data) < size:
                raise DmaError(f"the file behind {address:#x} is too short")
            parts.append(data)
        return b"".join(parts)

    def write(self, address: int, data: bytes) -> bool:
        """Write, and return whether that was possible: not where the client passed no file.

        :raises DmaError: it is not mapped to be written to.
        """
        pieces = list(self._pieces(address, len(data), WRITABLE))
        if any(one.file is None for one, _, _ in pieces):
            return False
        done = 0
        for one, start, size in pieces:
            assert one.file is not None
            written = os.pwrite(self._files[one.file][0], data[done : done + size], one.offset + start)
            if written < size:
                raise DmaError(f"the file behind {address:#x} cannot be written")
            done += size
        return True

    def _pieces(self, address: int, count: int, needed: int) -> Iterator[tuple[Mapping, int, int]]:
        while count > 0:
            one = self._below(address)
            if one is None or address >= one.address + one.size or not one.flags & needed:
                raise DmaError(f"{address:#x} is not mapped for this")
            start = address - one.address
            size = min(count, one.size - start)
            yield one, start, size
            address, count = address + size, count - size

    def _below(self, address: int) -> Mapping | None:
        """Return the last piece that begins at an address or below it."""
        if self._sorted is None:
            self._sorted = sorted(self._mappings)
        index = bisect_right(self._sorted, address)
        return self._mappings[self._sorted[index - 1]] if index else None

    def _hold(self, descriptor: int) -> tuple[int, int]:
        status = os.fstat(descriptor)
        file = status.st_dev, status.st_ino
        first, users = self._files.get(file, (descriptor, 0))
        if users:
            os.close(descriptor)
        self._files[file] = first, users + 1
        return file

    def _drop(self, file: tuple[int, int] | None) -> None:
        if file is None:
            return
        descriptor, users = self._files[file]
        if users > 1:
            self._files[file] = descriptor, users - 1
        else:
            del self._files[file]
            os.close(descriptor)
