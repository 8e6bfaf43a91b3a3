"""Programs for ppc64le that are so short that they are written down as instructions: no compiler for it is needed."""

from __future__ import annotations

import struct
from typing import Final

#: Where a program is in memory; it begins with its ELF header.
BASE: Final = 0x1000_0000
# One segment has all.
_HEADERS: Final = 64 + 56

#: Bits of the condition register, the last one set by a system call that failed, and whether a branch is for one that is set or clear.
LESS, EQUAL, ERROR = 0, 2, 3
SET, CLEAR = 12, 4
# Linux: arch/powerpc/kernel/syscalls/syscall.tbl.
_READ: Final = 3


class Code:
    """Instructions of the Power ISA, book I, as far as needed. Registers are numbers.

    The stack pointer is register 1; what is below it is free, for nothing is called and no signal is handled.
    """

    def __init__(self) -> None:
        self._words: list[int] = []
        self._labels: dict[str, int] = {}
        self._branches: dict[int, str] = {}
        self._texts: dict[int, str] = {}

    def label(self, name: str) -> None:
        self._labels[name] = len(self._words)

    def addi(self, target: int, source: int, value: int) -> None:
        self._words.append(14 << 26 | target << 21 | source << 16 | value & 0xFFFF)

    def li(self, target: int, value: int) -> None:
        self.addi(target, 0, value)

    def constant(self, target: int, value: int) -> None:
        """lis and ori. The upper half of the register gets the sign, which the kernel does not look at in a request's number."""
        self._words.append(15 << 26 | target << 21 | value >> 16)
        self._words.append(24 << 26 | target << 21 | target << 16 | value & 0xFFFF)

    def address(self, target: int, text: str) -> None:
        self._texts[len(self._words)] = text
        self.constant(target, 0)

    def add(self, target: int, one: int, other: int) -> None:
        self._words.append(31 << 26 | target << 21 | one << 16 | other << 11 | 266 << 1)

    def subtract(self, target: int, minuend: int, subtrahend: int) -> None:
        self._words.append(31 << 26 | target << 21 | subtrahend << 16 | minuend << 11 | 40 << 1)

    def compare(self, register: int, value: int) -> None:
        self._words.append(11 << 26 | register << 16 | value & 0xFFFF)

    def branch(self, when: int, bit: int, label: str) -> None:
        self._branches[len(self._words)] = label
        self._words.append(16 << 26 | when << 21 | bit << 16)

    def system_call(self, number: int) -> None:
        self.li(0, number)
        self.call()

    def call(self) -> None:
        """The system call whose number is in register 0."""
        self._words.append(17 << 26 | 2)

    def read_whole(self, size: int, buffer: int, at_end: str) -> None:
        """Read so many bytes from the standard input, which gives what there is: a console, a pipe.

        :param buffer: where, from the stack pointer. :param at_end: the label to go to at the input's end, and at an error. Uses the label
            ``more``.
        """
        self.li(31, 0)
        self.label("more")
        self.li(3, 0)
        self.addi(4, 1, buffer)
        self.add(4, 4, 31)
        self.li(5, size)
        self.subtract(5, 5, 31)
        self.system_call(_READ)
        self.branch(SET, ERROR, at_end)
        self.compare(3, 0)
        self.branch(SET, EQUAL, at_end)
        self.add(31, 31, 3)
        self.compare(31, size)
        self.branch(SET, LESS, "more")

    def load(self, target: int, source: int, displacement: int) -> None:
        """A doubleword. :param displacement: a multiple of 4."""
        self._words.append(58 << 26 | target << 21 | source << 16 | displacement & 0xFFFC)

    def program(self) -> bytes:
        """Return an ELF file with the instructions, which run from the first one."""
        body = self._assembled()
        size = _HEADERS + len(body)
        ident = b"\x7fELF" + bytes([2, 1, 1]) + bytes(9)
        # EXEC, PPC64, ELFv2: the entry is an address of code, not of a descriptor.
        header = struct.pack("<16sHHIQQQIHHHHHH", ident, 2, 21, 1, BASE + _HEADERS, 64, 0, 2, 64, 56, 1, 0, 0, 0)
        # PT_LOAD, readable and executable.
        segment = struct.pack("<IIQQQQQQ", 1, 5, 0, BASE, BASE, size, size, 0x1_0000)
        return header + segment + body

    def _assembled(self) -> bytes:
        """Return the instructions, and the texts after them."""
        words = list(self._words)
        for place, label in self._branches.items():
            words[place] |= 4 * (self._labels[label] - place) & 0xFFFC
        texts = b""
        for place, text in self._texts.items():
            address = BASE + _HEADERS + 4 * len(words) + len(texts)
            words[place] |= address >> 16
            words[place + 1] |= address & 0xFFFF
            texts += text.encode()
        return struct.pack(f"<{len(words)}I", *words) + texts
