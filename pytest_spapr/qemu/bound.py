"""Commands that end with who started them, and the program that sees to it.

``python bound.py PARENT COMMAND...`` becomes COMMAND, which is killed when the thread that started it ends.

Python's ``preexec_fn`` would do this without a program, but may deadlock in a process with threads. util-linux's ``setpriv
--pdeathsig`` is not everywhere, and does not notice a parent that died before it was asked. Costs 10 ms.
"""

from __future__ import annotations

import os
import signal
import sys

_PR_SET_PDEATHSIG = 1
#: The exit status where COMMAND is none, as a shell's.
CANNOT_EXECUTE = 127


def bound(command: list[str]) -> list[str]:
    """Return the command that becomes this one and is killed when the thread of this process that starts it ends."""
    return [sys.executable, "-I", "-S", __file__, str(os.getpid()), *command]


def main(parent: int, command: list[str]) -> None:
    """Bind this process to its parent and become ``command``; returns only if that cannot be executed."""
    import ctypes  # Who only asks for a command needs none of it.

    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        # It died before the line above: there is nobody left to be told.
        return
    # Python ignores these, and an ignored signal stays ignored in the next program.
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    try:
        os.execvp(command[0], command)  # noqa: S606 - becoming the command is the point
    except OSError as error:
        sys.stderr.write(f"cannot execute {command[0]}: {error.strerror}\n")


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
    sys.exit(CANNOT_EXECUTE)
