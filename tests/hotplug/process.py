"""A process of the guest that makes the system calls a test asks for: what no program of the image does with memory."""

from __future__ import annotations

import base64
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from pytest_spapr import Guest
from pytest_spapr.images.ppc64 import BASE, CLEAR, ERROR, Code

# Linux on ppc64: arch/powerpc/kernel/syscalls/syscall.tbl.
WRITE, PIPE, _MMAP, MADVISE, _EXIT_GROUP, _SET_MEMPOLICY = 4, 42, 90, 205, 234, 261
# include/uapi/asm-generic/mman-common.h, arch/powerpc/include/uapi/asm/mman.h.
LOCKED, POPULATED, HUGE = 0x80, 0x8000, 0x4_0000
MERGEABLE, HUGEPAGE, NOHUGEPAGE, POPULATE_WRITE = 12, 14, 15, 23
_PRIVATE, _FIXED, _ANONYMOUS = 0x2, 0x10, 0x20
_READABLE, _WRITABLE = 1, 2
_BIND = 2

#: Where :func:`reserve` has the process put memory.
ADDRESS: Final = 0x1_0000_0000
# The ELF header says at its byte 16 that this is an executable, by the bit that says node 1 elsewhere.
_NODE_1: Final = BASE + 16
#: Takes what comes next from the guest's NUMA node 1, also what the kernel needs for it.
MEMPOLICY_OF_NODE_1: Final = (_SET_MEMPOLICY, _BIND, _NODE_1, 3)

_CALL: Final = struct.Struct("<7Q")
# Below the stack pointer.
_BUFFER: Final = -256
_PATH: Final = "/tmp/caller"


def reserve(size: int, flags: int = 0) -> tuple[int, ...]:
    """Return the call that gives a process ``size`` bytes at :data:`ADDRESS`. :param flags: ``LOCKED``, ``POPULATED``, ``HUGE``."""
    nowhere = (1 << 64) - 1
    return _MMAP, ADDRESS, size, _READABLE | _WRITABLE, _PRIVATE | _FIXED | _ANONYMOUS | flags, nowhere, 0


def _program() -> bytes:
    """Read a system call's number and six arguments from the standard input, make the call, and begin again; exit if it fails."""
    code = Code()
    code.label("next")
    code.read_whole(_CALL.size, _BUFFER, "exit")
    for place, register in enumerate((0, 3, 4, 5, 6, 7, 8)):
        code.load(register, 1, _BUFFER + 8 * place)
    code.call()
    code.branch(CLEAR, ERROR, "next")
    code.label("exit")
    # r3 is the number of an error, or 0 at the end of the input.
    code.system_call(_EXIT_GROUP)
    return code.program()


@contextmanager
def process(guest: Guest, *calls: tuple[int, ...]) -> Iterator[None]:
    """Have a process make these system calls, a number and up to six arguments each, and live on until the ``with`` block ends.

    :raises CommandFailed: one of the calls failed.
    """
    # The last one says by four bytes that all were made.
    made = (*calls, (WRITE, 1, BASE, 4))
    words = b"".join(_CALL.pack(*call, *(0,) * (7 - len(call))) for call in made)
    program, data = (base64.b64encode(part).decode() for part in (_program(), words))
    guest.run(
        f"cd /tmp; rm -f caller*; mkfifo caller.more caller.said && echo {program} | busybox base64 -d > {_PATH} && chmod +x {_PATH} && "
        f"(setsid sh -c '{{ echo {data} | busybox base64 -d; cat caller.more; }} | {_PATH} > caller.said' > /dev/null 2>&1 &) && "
        'test "$(head -c 4 caller.said | wc -c)" = 4'
    ).check()
    try:
        yield
    finally:
        if guest.usable:
            guest.run(": > /tmp/caller.more; while pidof caller; do usleep 10000; done").check()
