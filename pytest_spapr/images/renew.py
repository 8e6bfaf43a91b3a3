"""``renew``: the guest's process by which a clone is given the host's time, timers that go on, and random numbers of its own.

Nothing less is sound: what is merely mixed into the kernel's pool is used at its next reseed, up to a minute later, and until then all
clones of a template have the same random numbers. The ioctl that reseeds at once is asked for by no program in Debian, and busybox
sets whole seconds.

Timers: before 8.2, QEMU's migration leaves out the decrementer (target/ppc: "Migrate DECR SPR"). A guest of 7.2 then waits for an
interrupt that never comes, with all its timers behind it: RCU, and with it the hot-plug of a CPU, stands still. A timer that is due
since long makes the kernel program the decrementer anew (hrtimer_reprogram). It has to be started on each CPU.

The process is there before it is needed: in a new clone a fork and an exec cost 0.1 s under TCG, this costs 0.03 s. It waits for 80
bytes on its standard input, one after another a ``struct timespec`` for the clock, one long past, a mask of CPUs and a ``struct
rand_pool_info``, makes five system calls with them, the last two on descriptor 2, which is ``/dev/urandom``, says ``renew: done`` or
``renew: failed``, and waits again. A program of so few instructions is written down here, so that building an image needs no compiler
for ppc64le.
"""

from __future__ import annotations

import struct
from typing import Final

#: Bytes of entropy that it takes.
SEED: Final = 32
#: What it says.
DONE, FAILED = "renew: done", "renew: failed"

_TIMESPEC: Final = struct.Struct("<qq")
_MASK: Final = struct.Struct("<Q")
#: CPUs that a mask has room for.
CPUS: Final = 8 * _MASK.size
# Bits of entropy, bytes, and those bytes.
_POOL: Final = struct.Struct(f"<ii{SEED}s")
_PAST_AT: Final = _TIMESPEC.size
_MASK_AT: Final = _PAST_AT + _TIMESPEC.size
_POOL_AT: Final = _MASK_AT + _MASK.size
_SIZE: Final = _POOL_AT + _POOL.size

# Linux on ppc64: arch/powerpc/kernel/syscalls/syscall.tbl, include/uapi/linux/random.h with powerpc's _IOC.
_READ, _WRITE, _IOCTL, _SCHED_SETAFFINITY, _EXIT_GROUP, _CLOCK_SETTIME, _CLOCK_NANOSLEEP = 3, 4, 54, 222, 234, 245, 248
_RNDADDENTROPY, _RNDRESEEDCRNG = 0x8008_5203, 0x2000_5207
_CLOCK_REALTIME, _CLOCK_MONOTONIC = 0, 1
_TIMER_ABSTIME: Final = 1
# Not 0, which is no time to wait for.
_LONG_PAST: Final = (0, 1)
# Below the stack pointer: nothing is called and no signal is handled.
_BUFFER: Final = -256

# ELF: one segment has all.
_BASE: Final = 0x1000_0000
_HEADERS: Final = 64 + 56
# Bits of the condition register, and whether a branch is for one that is set or clear.
_LESS, _EQUAL, _ERROR = 0, 2, 3
_SET, _CLEAR = 12, 4


def message(seconds: int, nanoseconds: int, cpu: int, seed: bytes) -> bytes:
    """Return what ``renew`` waits for.

    :param seconds: :param nanoseconds: since 1970. :param cpu: whose timers are to go on. :param seed: :data:`SEED` bytes.
    """
    times = _TIMESPEC.pack(seconds, nanoseconds) + _TIMESPEC.pack(*_LONG_PAST)
    return times + _MASK.pack(1 << cpu) + _POOL.pack(8 * SEED, SEED, seed)


def program() -> bytes:
    """Return the program, an ELF file for ppc64le."""
    body = _body()
    size = _HEADERS + len(body)
    ident = b"\x7fELF" + bytes([2, 1, 1]) + bytes(9)
    # EXEC, PPC64, ELFv2: the entry is an address of code, not of a descriptor.
    header = struct.pack("<16sHHIQQQIHHHHHH", ident, 2, 21, 1, _BASE + _HEADERS, 64, 0, 2, 64, 56, 1, 0, 0, 0)
    # PT_LOAD, readable and executable.
    segment = struct.pack("<IIQQQQQQ", 1, 5, 0, _BASE, _BASE, size, size, 0x1_0000)
    return header + segment + body


def _body() -> bytes:
    code = _Code()
    code.label("wait")
    code.li(31, 0)
    code.label("more")
    # A console gives what there is: r31 counts.
    code.li(3, 0)
    code.addi(4, 1, _BUFFER)
    code.add(4, 4, 31)
    code.li(5, _SIZE)
    code.subtract(5, 5, 31)
    code.system_call(_READ)
    code.branch(_SET, _ERROR, "exit")
    code.compare(3, 0)
    code.branch(_SET, _EQUAL, "exit")
    code.add(31, 31, 3)
    code.compare(31, _SIZE)
    code.branch(_SET, _LESS, "more")

    code.li(3, _CLOCK_REALTIME)
    code.addi(4, 1, _BUFFER)
    code.system_call(_CLOCK_SETTIME)
    code.branch(_SET, _ERROR, "failed")
    # 0: this process.
    code.li(3, 0)
    code.li(4, _MASK.size)
    code.addi(5, 1, _BUFFER + _MASK_AT)
    code.system_call(_SCHED_SETAFFINITY)
    code.branch(_SET, _ERROR, "failed")
    code.li(3, _CLOCK_MONOTONIC)
    code.li(4, _TIMER_ABSTIME)
    code.addi(5, 1, _BUFFER + _PAST_AT)
    code.li(6, 0)
    code.system_call(_CLOCK_NANOSLEEP)
    code.branch(_SET, _ERROR, "failed")
    code.li(3, 2)
    code.constant(4, _RNDADDENTROPY)
    code.addi(5, 1, _BUFFER + _POOL_AT)
    code.system_call(_IOCTL)
    code.branch(_SET, _ERROR, "failed")
    code.li(3, 2)
    code.constant(4, _RNDRESEEDCRNG)
    code.system_call(_IOCTL)
    code.branch(_SET, _ERROR, "failed")

    for label, text in (("done", f"{DONE}\n"), ("failed", f"{FAILED}\n")):
        code.label(label)
        code.li(3, 1)
        code.address(4, text)
        code.li(5, len(text))
        code.system_call(_WRITE)
        code.branch(_CLEAR, _ERROR, "wait")
        code.branch(_SET, _ERROR, "exit")

    code.label("exit")
    # r3 is the number of an error, or 0 at the end of the input.
    code.system_call(_EXIT_GROUP)
    return code.assembled()


class _Code:
    """Instructions of the Power ISA, book I, as far as needed. Registers are numbers."""

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
        self._words.append(17 << 26 | 2)

    def assembled(self) -> bytes:
        """Return the instructions, and the texts after them."""
        words = list(self._words)
        for place, label in self._branches.items():
            words[place] |= 4 * (self._labels[label] - place) & 0xFFFC
        texts = b""
        for place, text in self._texts.items():
            address = _BASE + _HEADERS + 4 * len(words) + len(texts)
            words[place] |= address >> 16
            words[place + 1] |= address & 0xFFFF
            texts += text.encode()
        return struct.pack(f"<{len(words)}I", *words) + texts
