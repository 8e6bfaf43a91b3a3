"""Help for a person at a running test, with a real QEMU."""

from __future__ import annotations

import asyncio
import os
import re
import select
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
from qemu.qmp import QMPClient

from pytest_spapr import QemuBuild

from .telling import started

_SECONDS = 60.0
_MONITOR = re.compile(r"spapr: .*::test_it: qmp-shell -p (?P<path>\S+)")
_KEPT = re.compile(r"end it: kill (?P<pid>\d+)")


def test_the_second_monitor_answers_beside_the_first_and_goes_with_the_machine(
    pytester: pytest.Pytester, qemu_build: QemuBuild
) -> None:
    pytester.makepyfile(
        """
        import asyncio
        from qemu.qmp import QMPClient

        async def asked(path):
            monitor = QMPClient("person")
            await monitor.connect(str(path))
            await monitor.execute("cont")
            answer = await monitor.execute("query-status")
            await monitor.disconnect()
            return answer["status"]

        def test_it(launch_machine):
            machine = launch_machine(image=None, boot=False)
            since = machine.timeline.mark()
            assert asyncio.run(asked(machine.backdoor)) == machine.status() == "running"
            assert "RESUME" in [record.event for record in machine.timeline.since(since)]
            machine.migrate()
            assert asyncio.run(asked(machine.backdoor)) == "running"
            machine.close()
            assert not machine.backdoor.exists()
        """
    )
    result = pytester.runpytest_subprocess(f"--spapr-qemu={qemu_build.name}", "--spapr-backdoor")
    result.assert_outcomes(passed=1)
    told = [found["path"] for line in result.errlines if (found := _MONITOR.match(line))]
    assert len(set(told)) == 2, "one for each QEMU"
    assert not any(Path(path).exists() for path in told)


def test_a_kept_machine_has_its_monitor_when_pytest_is_gone(pytester: pytest.Pytester, qemu_build: QemuBuild) -> None:
    pytester.makepyfile("def test_it(launch_machine):\n    launch_machine(image=None, boot=False)")
    options = (f"--spapr-qemu={qemu_build.name}", "--spapr-backdoor", "--spapr-keep=always")
    with started([sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *options], pytester.path) as process:
        output, _ = process.communicate(timeout=_SECONDS)
    assert process.returncode == 0, output
    monitor, kept = _MONITOR.search(output), _KEPT.search(output)
    assert monitor is not None, output
    assert kept is not None, output
    qemu = os.pidfd_open(int(kept["pid"]))
    try:
        assert asyncio.run(_status(monitor["path"])) == "prelaunch"
    finally:
        signal.pidfd_send_signal(qemu, signal.SIGTERM)
        ended = select.select([qemu], [], [], _SECONDS)[0]
        os.close(qemu)
    assert ended
    assert not Path(monitor["path"]).exists(), "QEMU removes it when it ends in good order"


def test_a_silent_wait_outlasts_a_person_who_thinks(pytester: pytest.Pytester, qemu_build: QemuBuild) -> None:
    """A deadline of 2 s, and a person who thinks for 4 s; meanwhile the monitor answers what is typed."""
    pytester.makepyfile(
        person="""
        import pdb, threading

        class Person(pdb.Pdb):
            use_rawinput = False

            def __init__(self, *arguments, **named):
                super().__init__(*arguments, **named)
                self.stdin = self
                self.typed = ["p 'it is ' + machine.status()\\n", "c\\n"]

            def readline(self):
                threading.Event().wait(2)
                return self.typed.pop(0)
        """
    )
    pytester.makepyfile(
        """
        from pytest_spapr.deadline import Deadline

        def test_it(launch_machine):
            machine = launch_machine(image=None, boot=False)
            since, deadline = machine.timeline.mark(), Deadline(2)
            breakpoint()
            machine.cont()
            resumed = lambda record: record if record.event == "RESUME" else None
            assert machine.timeline.wait(resumed, since=since, deadline=deadline, what="RESUME")
        """
    )
    options = (f"--spapr-qemu={qemu_build.name}", "--pdbcls=person:Person", f"--override-ini=pythonpath={pytester.path}")
    result = pytester.runpytest_subprocess(*options)
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["*'it is prelaunch'*"])


async def _status(path: str) -> str:
    monitor = QMPClient("person")
    await monitor.connect(path)
    try:
        answer: Any = await monitor.execute("query-status")
        return str(answer["status"])
    finally:
        await monitor.disconnect()
