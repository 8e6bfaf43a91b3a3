"""A program of its own: ``python keeper.py SCRATCH SECONDS COMMAND...`` runs COMMAND, and answers for all that comes of it.

It writes a line to its stdout when COMMAND has ended: the exit status, as ``Popen.returncode``. By then no process is left that COMMAND
started, also none that made itself a session of its own, as QEMU does. The directory SCRATCH stays until stdin is closed, and goes then.

A byte on stdin, and its end, mean that the command is to be given up: it gets SIGTERM, and SIGKILL so many seconds later. Whoever
started the keeper and dies, of whatever, thereby closes stdin: nothing is left either. A keeper that is killed takes COMMAND along.

COMMAND's stdout and stderr are the keeper's stderr. Imports nothing but Python's own library: it starts in 30 ms.
"""

from __future__ import annotations

import ctypes
import os
import select
import shutil
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

_PR_SET_CHILD_SUBREAPER = 36
_BOUND = str(Path(__file__).parents[1] / "qemu" / "bound.py")
_STDIN = 0


def main(scratch: Path, seconds: float, command: list[str]) -> None:
    """Run the command, tell its status, and wait until the scratch directory is no longer needed."""
    # Orphans become this process's children: wherever they went, they can be found.
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1)
    # Whoever ends all processes of the host ends the one that keeps stdin open, too. A handler is not inherited, as SIG_IGN would be.
    signal.signal(signal.SIGTERM, lambda _number, _frame: None)
    try:
        status, closed = _run(command, seconds)
        # Nobody is left to read it where stdin was closed.
        with suppress(BrokenPipeError):
            os.write(1, f"{status}\n".encode())
        while not closed:
            closed = not os.read(_STDIN, 1)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _run(command: list[str], seconds: float) -> tuple[int, bool]:
    """Run the command until it ends or is given up; return its status and whether stdin was closed."""
    bound = [sys.executable, "-I", "-S", _BOUND, str(os.getpid())]
    child = subprocess.Popen([*bound, *command], stdin=subprocess.DEVNULL, stdout=sys.stderr)
    ended = os.pidfd_open(child.pid)
    closed = False
    try:
        if ended not in select.select([ended, _STDIN], [], [])[0]:
            closed = not os.read(_STDIN, 1)
            child.terminate()
            if not select.select([ended], [], [], seconds)[0]:
                child.kill()
        return child.wait(), closed
    finally:
        os.close(ended)
        _end_orphans()


def _end_orphans() -> None:
    """Kill all children, and theirs, which become ours when those are gone."""
    with suppress(ChildProcessError):
        while True:
            for pid in _children():
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            os.waitpid(-1, 0)


def _children() -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            # A process may end while it is looked at.
            with suppress(OSError):
                # The name may have blanks and brackets, see proc(5).
                parent = (entry / "stat").read_text().rpartition(")")[2].split()[1]
                if int(parent) == os.getpid():
                    found.append(int(entry.name))
    return found


if __name__ == "__main__":
    main(Path(sys.argv[1]), float(sys.argv[2]), sys.argv[3:])
