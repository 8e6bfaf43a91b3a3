"""How maintainers' tools end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from typing import NoReturn

import pytest

from ci.command import ended
from pytest_spapr.errors import ConfigError

_RUNS_ANOTHER = """\
import signal, subprocess, sys
from ci.command import ended
# Where a shell's background job runs this, Ctrl-C is ignored, and Python leaves it so.
signal.signal(signal.SIGINT, signal.default_int_handler)
def run():
    with subprocess.Popen(["sleep", "600"]) as other:
        try:
            print("up", flush=True)
            return other.wait()
        finally:
            other.kill()
sys.exit(ended("tool", run))
"""


def _raises(error: BaseException) -> Callable[[], NoReturn]:
    def run() -> NoReturn:
        raise error

    return run


@pytest.mark.parametrize(
    ("run", "status", "said"),
    [
        (lambda: 1, 1, ""),
        (_raises(ConfigError("--x: wrong")), 2, "tool: --x: wrong\n"),
        (_raises(KeyboardInterrupt()), 130, ""),
        (lambda: os.kill(os.getpid(), signal.SIGTERM), 143, ""),
    ],
    ids=["done", "wrong", "Ctrl-C", "SIGTERM"],
)
def test_a_tool_ends_with_a_status(run: Callable[[], int], status: int, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    before = signal.getsignal(signal.SIGTERM)
    assert ended("tool", run) == status
    assert capsys.readouterr().err == said
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)], ids=["SIGTERM", "SIGINT"])
def test_what_a_tool_runs_ends_with_it(number: signal.Signals, status: int) -> None:
    with subprocess.Popen([sys.executable, "-c", _RUNS_ANOTHER], stdout=subprocess.PIPE) as tool:
        assert tool.stdout
        assert tool.stdout.readline() == b"up\n"
        tool.send_signal(number)
        # Its end is that of all who have it open: of the other process, too.
        assert tool.stdout.read() == b""
        assert tool.wait() == status
