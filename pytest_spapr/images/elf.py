"""The little of ELF that images need: what a file is, which libraries it asks for, and a section's bytes."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

_PT_LOAD, _PT_DYNAMIC, _PT_INTERP = 1, 2, 3
_DT_NEEDED, _DT_STRTAB = 1, 5
EM_PPC64, EM_X86_64 = 21, 62
ET_REL, ET_EXEC, ET_DYN = 1, 2, 3


class NotElf(ValueError):
    """The bytes are no 64-bit little-endian ELF file, or a damaged one."""


@dataclass(frozen=True, slots=True)
class _Segment:
    kind: int
    offset: int
    address: int
    size: int


class Elf:
    """A 64-bit little-endian ELF file in memory.

    :raises NotElf: when it is something else.
    """

    def __init__(self, data: bytes) -> None:
        if data[:4] != b"\x7fELF":
            raise NotElf("no ELF file")
        if data[4:6] != b"\x02\x01":
            raise NotElf("an ELF file, but not a 64-bit little-endian one")
        self._data = data
        try:
            header = struct.unpack_from("<HHIQQQIHHHHHH", data, 16)
        except struct.error as error:
            raise NotElf("an ELF file that is cut off") from error
        self.type, self.machine = header[0], header[1]
        self._segment_table = (header[4], header[8], header[9])
        self._section_table = (header[5], header[10], header[11])
        self._names = header[12]

    def needed(self) -> list[str]:
        """Return the names of the shared libraries that it asks for, its interpreter (a path) last."""
        segments = list(self._segments())
        return [*self._libraries(segments), *self._interpreter(segments)]

    def section(self, name: str) -> bytes | None:
        """Return a section's bytes, or None."""
        offset, size, count = self._section_table
        try:
            headers = [struct.unpack_from("<IIQQQQ", self._data, offset + size * index) for index in range(count)]
            names = headers[self._names]
            for header in headers:
                if self._string(names[4] + header[0]) == name:
                    return self._data[header[4] : header[4] + header[5]]
        except (struct.error, IndexError) as error:
            raise NotElf("an ELF file with a damaged section table") from error
        return None

    def _segments(self) -> Iterator[_Segment]:
        offset, size, count = self._segment_table
        for index in range(count):
            try:
                kind, _flags, start, address, _physical, length = struct.unpack_from("<IIQQQQ", self._data, offset + size * index)
            except struct.error as error:
                raise NotElf("an ELF file that is cut off") from error
            yield _Segment(kind, start, address, length)

    def _libraries(self, segments: list[_Segment]) -> Iterator[str]:
        for dynamic in (segment for segment in segments if segment.kind == _PT_DYNAMIC):
            entries = list(struct.iter_unpack("<QQ", self._data[dynamic.offset : dynamic.offset + dynamic.size // 16 * 16]))
            table = next((value for tag, value in entries if tag == _DT_STRTAB), None)
            if table is None:
                return
            load = next((s for s in segments if s.kind == _PT_LOAD and s.address <= table < s.address + s.size), None)
            if load is None:
                raise NotElf("an ELF file whose string table is nowhere")
            start = table - load.address + load.offset
            yield from (self._string(start + value) for tag, value in entries if tag == _DT_NEEDED)

    def _interpreter(self, segments: list[_Segment]) -> Iterator[str]:
        yield from (self._string(segment.offset) for segment in segments if segment.kind == _PT_INTERP)

    def _string(self, offset: int) -> str:
        end = self._data.find(b"\0", offset)
        return self._data[offset:end].decode(errors="replace")
