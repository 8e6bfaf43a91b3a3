"""What a guest does over and over while something else is tested, and the proof that it does."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from pytest_spapr import Guest

_SCRIPT, _PID, _TURNS = "/run/load", "/run/load.pid", "/run/load.turns"
# Ends with the load, so that one that has failed is told at once.
_ONE_MORE: Final = (
    f"n=$(wc -l < {_TURNS}); until test $(wc -l < {_TURNS}) -gt $n; do kill -0 $(cat {_PID}) || exit; usleep 10000; done"
)


@contextmanager
def in_background(guest: Guest, script: str) -> Iterator[None]:
    """Have the guest do something over and over: it has been done when the block begins, and is done once more when that has ended.

    :param script: one turn, in single quotes none. It fails if any of it does, and is not done again then.
    :raises CommandFailed: a turn failed.
    """
    guest.run(
        f": > {_TURNS}; echo 'while {script}; do echo >> {_TURNS}; done' > {_SCRIPT}; "
        f"setsid sh {_SCRIPT} > /dev/null 2>&1 < /dev/null & echo $! > {_PID}"
    ).check()
    try:
        guest.run(_ONE_MORE).check()
        yield
        guest.run(_ONE_MORE).check()
    finally:
        if guest.usable:
            guest.run(f"kill -- -$(cat {_PID})")
