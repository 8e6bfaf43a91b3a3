"""The world without a guest: whose fault it is when a step cannot be done. No QEMU runs here."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from pytest_spapr.errors import DeadlineExpired, MachineDied
from pytest_spapr.explore.firmware import FirmwareWorld
from pytest_spapr.explore.steps import Aside, Command
from pytest_spapr.timeline import Timeline

ASIDE = Aside(Command("device_del", {"id": "core1"}))


class World(FirmwareWorld):
    """One whose machine is this, and to which no other monitor comes."""

    def __init__(self, execute: Callable[[str], Any], error: OSError) -> None:
        machine: Any = SimpleNamespace(qmp=SimpleNamespace(execute=execute), timeline=Timeline())
        self.machine, self._seen, self._error = machine, 0, error

    def _another_monitor(self) -> Any:
        raise self._error


def fails(number: int) -> OSError:
    return OSError(number, os.strerror(number))


def lives(_: str) -> None: ...


def dies(_: str) -> None:
    raise MachineDied("QEMU (pid 7) was killed by SIGSEGV", -11)


def hangs(_: str) -> None:
    raise DeadlineExpired("QEMU's answer to query-status", 5)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EMFILE, errno.EACCES])
def test_what_this_host_cannot_do_is_no_violation(number: int) -> None:
    with pytest.raises(OSError, match=os.strerror(number)):
        World(lives, fails(number)).do(ASIDE, None)


@pytest.mark.parametrize(
    ("execute", "number", "end"),
    [
        (dies, errno.ECONNREFUSED, "QEMU was killed by SIGSEGV"),
        (dies, errno.EMFILE, "QEMU was killed by SIGSEGV"),
        (hangs, errno.EPIPE, "QEMU does not answer: waited 5.0 s in vain for QEMU's answer to query-status"),
        # It takes no other monitor any more.
        (lives, errno.ECONNREFUSED, "QEMU does not answer: [Errno 111] Connection refused"),
    ],
)
def test_what_qemu_does_not_do_is_one(execute: Callable[[str], Any], number: int, end: str) -> None:
    assert World(execute, fails(number)).do(ASIDE, None).end == end
