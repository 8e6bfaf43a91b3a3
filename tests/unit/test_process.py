"""The QEMU process, against scripted ones."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pytest_spapr.deadline import Deadline
from pytest_spapr.errors import DeadlineExpired, LaunchFailed, MachineDied
from pytest_spapr.qemu import bound
from pytest_spapr.qemu import process as process_module
from pytest_spapr.qemu.process import QemuProcess, exit_in_words
from pytest_spapr.timeline import Lane, Record, Timeline

from . import fake_qemu

Start = Callable[..., QemuProcess]


@pytest.fixture
def timeline() -> Timeline:
    return Timeline()


@pytest.fixture
def start(timeline: Timeline) -> Iterator[Start]:
    """Start a scripted QEMU by what it does at its start."""
    processes: list[QemuProcess] = []

    def start(*steps: dict[str, Any], **options: Any) -> QemuProcess:
        process = QemuProcess(fake_qemu.command({"start": steps}), timeline, **{"env": {}, **options})
        processes.append(process)
        return process

    yield start
    for process in processes:
        process.close()


def heard(timeline: Timeline, text: str) -> Record:
    """Wait for a line that QEMU wrote."""
    return timeline.wait(lambda record: record if record.text == text else None, since=0, deadline=Deadline(10), what=text)


def death(timeline: Timeline) -> MachineDied:
    with pytest.raises(MachineDied) as died:
        timeline.wait(lambda _: None, since=0, deadline=Deadline(10), what="nothing")
    return died.value


def test_one_that_is_retired_does_not_end_the_timeline(start: Start, timeline: Timeline) -> None:
    process = start({"stderr": "up"}, {"hang": True})
    heard(timeline, "up")
    process.retire()
    process.close()
    assert timeline.ended is None
    assert timeline.since()[-1].text == f"QEMU (pid {process.pid}) was killed by SIGKILL"


def test_what_it_writes_is_on_the_timeline(start: Start, timeline: Timeline) -> None:
    start({"stderr": "a warning"}, {"stdout": "a word"}, {"stderr": "spapr_drc_attach drc: 0x10000008"}, {"exit": 0})
    death(timeline)
    assert [(record.lane, record.text, record.data) for record in timeline.since()][:3] == [
        (Lane.STDERR, "a warning", None),
        (Lane.STDERR, "a word", None),
        (Lane.DRC, "spapr_drc_attach drc: 0x10000008", {"event": "spapr_drc_attach", "drc": 0x10000008}),
    ]


def test_what_tcg_says_each_time_is_left_out(start: Start, timeline: Timeline) -> None:
    start({"stderr": "qemu: warning: TCG doesn't support requested feature, cap-cfpc=workaround"}, {"exit": 0})
    assert death(timeline).stderr == ()


def test_resets_of_what_never_had_a_device_are_left_out(start: Start, timeline: Timeline) -> None:
    lines = ["spapr_drc_reset drc: 0x1", "spapr_drc_attach drc: 0x1", "spapr_drc_reset drc: 0x1", "spapr_drc_reset drc: 0x2"]
    start(*({"stderr": line} for line in lines), {"exit": 0})
    death(timeline)
    assert [record.text for record in timeline.since(0, Lane.DRC)] == lines[1:3]


def test_it_lives(start: Start, timeline: Timeline) -> None:
    process = start({"stderr": "up"}, {"hang": True})
    heard(timeline, "up")
    assert process.exit_status is None
    assert timeline.ended is None
    with pytest.raises(DeadlineExpired, match=f"QEMU \\(pid {process.pid}\\) to end"):
        process.wait(Deadline(0))


class TestEnd:
    """Of QEMU: it closes the timeline with the reason."""

    def test_a_crash(self, start: Start, timeline: Timeline) -> None:
        process = start({"stderr": "assertion failed"}, {"signal": signal.SIGABRT})
        died = death(timeline)
        assert str(died) == f"QEMU (pid {process.pid}) was killed by SIGABRT\nQEMU's last words:\n  assertion failed"
        assert died.exit_status == -signal.SIGABRT
        assert timeline.since()[-1].text == f"QEMU (pid {process.pid}) was killed by SIGABRT"
        assert process.wait(Deadline(10)) == -signal.SIGABRT
        assert process.exit_status == -signal.SIGABRT

    def test_an_exit(self, start: Start, timeline: Timeline) -> None:
        start({"exit": 3})
        died = death(timeline)
        assert died.exit_status == 3
        assert "ended with status 3\nQEMU said nothing on stderr." in str(died)

    def test_the_last_words_are_complete(self, start: Start, timeline: Timeline) -> None:
        """All of them are read before the end is told, and the last are kept."""
        start(*({"stderr": f"line {number}"} for number in range(200)), {"signal": signal.SIGSEGV})
        assert death(timeline).stderr == tuple(f"line {number}" for number in range(185, 200))
        assert len(timeline.since(0, Lane.STDERR)) == 201

    def test_lines_that_are_read_after_its_end_come_first(self, start: Start, timeline: Timeline) -> None:
        made = threading.Event()

        def dawdle(record: Record) -> None:
            if record.text == "line 0":
                made.wait(10)
                assert fake_qemu.gone(process.pid)

        timeline.listen(dawdle)
        process = start(*({"stderr": f"line {number}"} for number in range(200)), {"signal": signal.SIGSEGV})
        made.set()
        assert death(timeline).stderr[-1] == "line 199"

    def test_from_outside(self, start: Start, timeline: Timeline) -> None:
        process = start({"stderr": "up"}, {"hang": True})
        heard(timeline, "up")
        os.kill(process.pid, signal.SIGKILL)
        assert str(death(timeline)).startswith(f"QEMU (pid {process.pid}) was killed by SIGKILL\n")

    def test_on_purpose(self, start: Start, timeline: Timeline) -> None:
        process = start({"stderr": "up"}, {"hang": True})
        heard(timeline, "up")
        process.kill()
        assert str(death(timeline)).startswith(f"QEMU (pid {process.pid}) was ended by the test, it was killed by SIGKILL\n")
        assert process.exit_status == -signal.SIGKILL
        process.kill()
        process.close()

    def test_announced(self, start: Start, timeline: Timeline) -> None:
        process = start({"stderr": "up"}, {"hang": True})
        heard(timeline, "up")
        process.expect_exit()
        os.kill(process.pid, signal.SIGTERM)
        assert str(death(timeline)).startswith(f"QEMU (pid {process.pid}) was ended by the test, it was killed by SIGTERM\n")

    def test_a_child_that_holds_stderr_open_delays_nothing(self, start: Start, timeline: Timeline, tmp_path: Path) -> None:
        child = tmp_path / "child"
        start({"child": str(child)}, {"signal": signal.SIGSEGV})
        assert death(timeline).exit_status == -signal.SIGSEGV
        assert fake_qemu.gone(int(child.read_text()))

    def test_a_script_around_qemu_does_not_shield_it(self, timeline: Timeline, tmp_path: Path) -> None:
        """One that runs QEMU and does not become it."""
        pid, script = tmp_path / "pid", tmp_path / "qemu"
        script.write_text(f"#!/bin/sh\nsleep 1000 &\necho $! > {pid}\necho up\nwait\n")
        script.chmod(0o755)
        process = QemuProcess([str(script)], timeline, env={})
        heard(timeline, "up")
        process.close()
        assert fake_qemu.gone(int(pid.read_text()))


class TestStart:
    """What QEMU is given, and what goes wrong."""

    def test_it_inherits_what_it_is_given_and_nothing_else(self, timeline: Timeline, tmp_path: Path) -> None:
        ours, theirs = socket.socketpair()
        other = os.open(tmp_path, os.O_RDONLY)
        os.set_inheritable(other, True)
        script = 'import os; print(*sorted(os.listdir("/proc/self/fd"), key=int)); print(os.environ["SPAPR_TEST"], flush=True)'
        with ours, theirs:
            process = QemuProcess(
                [sys.executable, "-c", script], timeline, env={"SPAPR_TEST": "here"}, pass_fds=[theirs.fileno()]
            )
            died = death(timeline)
            process.close()
            inherited = str(theirs.fileno())
        os.close(other)
        descriptors = died.stderr[0].split()
        # The fifth is listdir's own.
        assert {"0", "1", "2", inherited} < set(descriptors)
        assert len(descriptors) == 5
        assert died.stderr[1] == "here"

    def test_it_has_no_stdin(self, timeline: Timeline) -> None:
        terminal, keyboard = os.pipe()
        stdin = os.dup(0)
        os.dup2(terminal, 0)
        try:
            process = QemuProcess(["cat"], timeline, env={})
        finally:
            os.dup2(stdin, 0)
        assert death(timeline).exit_status == 0
        process.close()
        for descriptor in (terminal, keyboard, stdin):
            os.close(descriptor)

    def test_a_program_that_is_not_there(self, timeline: Timeline) -> None:
        process = QemuProcess(["/no/such/qemu", "-m", "1 G"], timeline, env={})
        died = death(timeline)
        assert died.exit_status == 127
        assert died.stderr == ("cannot execute /no/such/qemu: No such file or directory",)
        assert process.command_line() == "/no/such/qemu -m '1 G'"
        process.close()

    def test_a_program_that_is_not_there_and_would_be_kept(self, timeline: Timeline) -> None:
        with pytest.raises(LaunchFailed, match="cannot execute /no/such/qemu: No such file or directory"):
            QemuProcess(["/no/such/qemu"], timeline, env={}, dies_with_parent=False)

    @pytest.mark.parametrize("dies_with_parent", [True, False])
    def test_a_command_line_that_no_system_takes(self, timeline: Timeline, dies_with_parent: bool) -> None:
        with pytest.raises(LaunchFailed, match=r"cannot execute .*: embedded null byte"):
            QemuProcess(["qemu", "-append", "a\0b"], timeline, env={}, dies_with_parent=dies_with_parent)

    def test_a_host_without_a_thread_left_keeps_no_process(self, start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
        def none_left(*_: object, **__: object) -> None:
            raise RuntimeError("can't start new thread")

        monkeypatch.setattr(process_module, "LineReader", none_left)
        killed: list[int] = []

        def kill(leader: int) -> None:
            killed.append(leader)
            os.killpg(leader, signal.SIGKILL)

        monkeypatch.setattr(process_module, "_kill_session", kill)
        with pytest.raises(LaunchFailed, match="can't start new thread"):
            start("sleep 60")
        with pytest.raises(ProcessLookupError):
            os.kill(killed[0], 0)

    def test_nothing_of_it_stays_behind(self, start: Start) -> None:
        threads, descriptors = set(threading.enumerate()), fake_qemu.descriptors()
        for _ in range(3):
            start({"hang": True}).close()
        assert set(threading.enumerate()) == threads
        assert fake_qemu.descriptors() == descriptors


class TestParentDeath:
    """QEMU dies with whoever started it, however that ends."""

    PARENT = textwrap.dedent(
        """
        import sys, threading, time
        from pytest_spapr.qemu.process import QemuProcess
        from pytest_spapr.timeline import Timeline
        def start():
            process = QemuProcess(["sleep", "1000"], Timeline(), env={}, dies_with_parent=sys.argv[1] == "bound")
            print(process.pid, flush=True)
        # A thread that ends at once: that must not matter.
        thread = threading.Thread(target=start)
        thread.start()
        thread.join()
        sys.stdin.read()
        """
    )

    def run(self, mode: str) -> tuple[subprocess.Popen[str], int]:
        parent = subprocess.Popen(
            [sys.executable, "-c", self.PARENT, mode], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert parent.stdout is not None
        return parent, int(parent.stdout.readline())

    def test_killed(self) -> None:
        parent, qemu = self.run("bound")
        with parent:
            os.kill(qemu, 0)
            parent.kill()
        assert fake_qemu.gone(qemu)

    def test_ended(self) -> None:
        parent, qemu = self.run("bound")
        with parent:
            os.kill(qemu, 0)
        assert fake_qemu.gone(qemu)

    def test_kept(self) -> None:
        parent, qemu = self.run("kept")
        try:
            with parent:
                parent.kill()
            assert not fake_qemu.gone(qemu, seconds=0.2)
        finally:
            os.kill(qemu, signal.SIGKILL)

    def test_the_thread_that_started_it_may_end(self, timeline: Timeline) -> None:
        made: list[QemuProcess] = []
        thread = threading.Thread(
            target=lambda: made.append(QemuProcess(fake_qemu.command({"start": [{"stderr": "up"}]}), timeline, env={}))
        )
        thread.start()
        thread.join()
        heard(timeline, "up")
        assert not fake_qemu.gone(made[0].pid, seconds=0.2)
        made[0].close()

    def test_a_parent_that_died_before(self) -> None:
        """The kernel tells of later deaths only."""
        run = [sys.executable, "-I", "-S", bound.__file__, str(os.getppid()), "echo", "alive"]
        assert subprocess.run(run, capture_output=True, text=True, check=False).stdout == ""

    def test_ignored_signals_are_not_handed_on(self) -> None:
        run = [sys.executable, "-I", "-S", bound.__file__, str(os.getpid()), "grep", "SigIgn", "/proc/self/status"]
        ignored = int(subprocess.check_output(run, text=True).split()[1], 16)
        # Python's own two. What was ignored before pytest started, as in a shell's background job, stays so.
        assert [number for number in (signal.SIGPIPE, signal.SIGXFSZ) if ignored >> (number - 1) & 1] == []


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (0, "ended with status 0"),
        (1, "ended with status 1"),
        (-6, "was killed by SIGABRT"),
        (-11, "was killed by SIGSEGV"),
        (-99, "was killed by signal 99"),
    ],
)
def test_exit_in_words(status: int, words: str) -> None:
    assert exit_in_words(status) == words
