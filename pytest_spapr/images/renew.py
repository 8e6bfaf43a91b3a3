"""``renew``: the guest's process by which a clone is given the host's time, timers that go on, and random numbers of its own.

Nothing less is sound: what is merely mixed into the kernel's pool is used at its next reseed, up to a minute later, and until then all
clones of a template have the same random numbers. The ioctl that reseeds at once is asked for by no program in Debian, and busybox
sets whole seconds.

Timers: before 8.2, QEMU's migration leaves out the decrementer (target/ppc: "Migrate DECR SPR"). A guest of 7.2 then waits for an
interrupt that never comes, with all its timers behind it: RCU, and with it the hot-plug of a CPU, stands still. A timer that is due
since long makes the kernel program the decrementer anew (hrtimer_reprogram). It has to be started on each CPU.

The process is there before it is needed: in a new clone a fork and an exec cost 0.1 s under TCG, this costs 0.03 s. It waits for 80
bytes on its standard input, one after another a ``struct timespec`` for the clock, one long past, a mask of CPUs and a ``struct
rand_pool_info``, makes five system calls with them, two of them on descriptor 2, which is ``/dev/urandom``, says ``renew: done``,
``renew: absent`` where only the timers were left, as no CPU of the mask is online, or ``renew: failed``, and waits again. A program of
so few instructions is written down here, so that building an image needs no compiler for ppc64le.
"""

from __future__ import annotations

import struct
from typing import Final

from pytest_spapr.images.ppc64 import CLEAR, ERROR, SET, Code

#: Bytes of entropy that it takes.
SEED: Final = 32
#: What it says.
DONE, ABSENT, FAILED = "renew: done", "renew: absent", "renew: failed"

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
_WRITE, _IOCTL, _SCHED_SETAFFINITY, _EXIT_GROUP, _CLOCK_SETTIME, _CLOCK_NANOSLEEP = 4, 54, 222, 234, 245, 248
_RNDADDENTROPY, _RNDRESEEDCRNG = 0x8008_5203, 0x2000_5207
_CLOCK_REALTIME, _CLOCK_MONOTONIC = 0, 1
_TIMER_ABSTIME: Final = 1
# Not 0, which is no time to wait for.
_LONG_PAST: Final = (0, 1)
# Below the stack pointer: nothing is called and no signal is handled.
_BUFFER: Final = -256


def message(seconds: int, nanoseconds: int, cpu: int, seed: bytes) -> bytes:
    """Return what ``renew`` waits for.

    :param seconds: :param nanoseconds: since 1970. :param cpu: whose timers are to go on. :param seed: :data:`SEED` bytes.
    """
    times = _TIMESPEC.pack(seconds, nanoseconds) + _TIMESPEC.pack(*_LONG_PAST)
    return times + _MASK.pack(1 << cpu) + _POOL.pack(8 * SEED, SEED, seed)


def program() -> bytes:
    """Return the program, an ELF file for ppc64le."""
    code = Code()
    code.label("wait")
    code.read_whole(_SIZE, _BUFFER, "exit")

    code.li(3, _CLOCK_REALTIME)
    code.addi(4, 1, _BUFFER)
    code.system_call(_CLOCK_SETTIME)
    code.branch(SET, ERROR, "failed")
    code.li(3, 2)
    code.constant(4, _RNDADDENTROPY)
    code.addi(5, 1, _BUFFER + _POOL_AT)
    code.system_call(_IOCTL)
    code.branch(SET, ERROR, "failed")
    code.li(3, 2)
    code.constant(4, _RNDRESEEDCRNG)
    code.system_call(_IOCTL)
    code.branch(SET, ERROR, "failed")
    # 0: this process.
    code.li(3, 0)
    code.li(4, _MASK.size)
    code.addi(5, 1, _BUFFER + _MASK_AT)
    code.system_call(_SCHED_SETAFFINITY)
    # EINVAL, of which nothing asked later can be sure: the CPU may be coming up just now.
    code.branch(SET, ERROR, "absent")
    code.li(3, _CLOCK_MONOTONIC)
    code.li(4, _TIMER_ABSTIME)
    code.addi(5, 1, _BUFFER + _PAST_AT)
    code.li(6, 0)
    code.system_call(_CLOCK_NANOSLEEP)
    code.branch(SET, ERROR, "failed")

    for label, text in (("done", DONE), ("absent", ABSENT), ("failed", FAILED)):
        code.label(label)
        code.li(3, 1)
        code.address(4, f"{text}\n")
        code.li(5, len(f"{text}\n"))
        code.system_call(_WRITE)
        code.branch(CLEAR, ERROR, "wait")
        code.branch(SET, ERROR, "exit")

    code.label("exit")
    # r3 is the number of an error, or 0 at the end of the input.
    code.system_call(_EXIT_GROUP)
    return code.program()
