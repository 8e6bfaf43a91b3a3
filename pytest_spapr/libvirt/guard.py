"""A program of its own: ``python guard.py HOME`` ends all that was started with this directory as ``HOME``, once its input ends.

libvirt makes the machines that it starts children of init, so that they outlive it and whoever started it. This process is told of
that one's end, however it ends, by the end of a pipe. It kills each process whose environment says ``HOME=`` and the directory, which
libvirt hands down to QEMU, and then removes the directory.
"""

from __future__ import annotations

import os
import select
import shutil
import signal
import sys
from collections.abc import Iterator
from contextlib import suppress

_EXEC_SECONDS = 0.1


def main(home: str) -> None:
    """Wait for the end of the input, then clean up. A process that one of these starts meanwhile is found by the next look."""
    # Ctrl-C goes to the whole group of a terminal; whoever holds the pipe decides when to end.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    while os.read(sys.stdin.fileno(), 4096):
        pass
    while _end(home) or _end_later(home):
        pass
    shutil.rmtree(home, ignore_errors=True)


def _end(home: str) -> bool:
    """Kill what is found now; return whether there was anything."""
    descriptors = list(_of(home))
    for descriptor in descriptors:
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(descriptor, signal.SIGKILL)
    for descriptor in descriptors:
        _await_end(descriptor)
        os.close(descriptor)
    return bool(descriptors)


def _end_later(home: str) -> bool:
    """The same, once a process that was in the middle of an exec, and had no environment to be found by, has one."""
    select.select([], [], [], _EXEC_SECONDS)
    return _end(home)


def _of(home: str) -> Iterator[int]:
    """Yield a descriptor of each process that has this ``HOME`` and has not ended."""
    for name in os.listdir("/proc"):  # noqa: PTH208 - pathlib costs 10 ms, and names are what is needed
        if not name.isdigit():
            continue
        with suppress(OSError):
            descriptor = os.pidfd_open(int(name))
            # Looked at while the descriptor is held: its number cannot be another process's by now.
            if _has(name, home):
                yield descriptor
            else:
                os.close(descriptor)


def _has(process: str, home: str) -> bool:
    try:
        with open(f"/proc/{process}/environ", "rb") as stream:  # noqa: PTH123
            return b"HOME=" + os.fsencode(home) in stream.read().split(b"\0")
    except OSError:
        # Another user's, or just gone.
        return False


def _await_end(descriptor: int) -> None:
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    poll.poll()


if __name__ == "__main__":
    main(sys.argv[1])
