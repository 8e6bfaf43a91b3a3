"""A testinfra ``Host`` over the guest's one ssh connection.

Built on testinfra's ``BaseBackend``, never through ``testinfra.get_host``: that caches by address for the life of the process, and
ports are used again by later guests.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from testinfra.backend.base import BaseBackend, CommandResult
from testinfra.host import Host

from pytest_spapr.guest.completed import Completed


class GuestBackend(BaseBackend):  # type: ignore[misc]  # testinfra is not typed
    """Runs testinfra's commands in the guest."""

    NAME = "spapr"

    def __init__(self, run: Callable[[str], Completed]) -> None:
        super().__init__("guest")
        self._run = run
        # Known, and asking costs a command: the image's locale is C.UTF-8 and busybox has no python.
        self._encoding = "utf-8"

    def run(self, command: str, *args: str, **_: Any) -> CommandResult:
        """Run ``command`` with ``args`` quoted into it."""
        line = self.get_command(command, *args)
        done = self._run(line)
        return self.result(done.status, self.encode(line), done.stdout, done.stderr)


def testinfra_host(run: Callable[[str], Completed]) -> Host:
    """Return a Host whose commands go through ``run``."""
    backend = GuestBackend(run)
    host = Host(backend)
    backend.set_host(host)
    return host
