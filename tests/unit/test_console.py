"""The console shell's host end, against guests that are threads: one that behaves (the image's own script), and many that do not."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_spapr.deadline import Deadline
from pytest_spapr.errors import DeadlineExpired, MachineDied, ShellFailed
from pytest_spapr.guest import completed
from pytest_spapr.guest import console as module
from pytest_spapr.guest.completed import Completed
from pytest_spapr.guest.console import ConsoleShell, ShellAbsent
from pytest_spapr.images.recipe import recipes_directory
from pytest_spapr.timeline import Lane, Timeline

#: For what is to happen; what is not to happen is given a SHORT time only.
LONG = 20.0
SHORT = 0.3
PID = 77

Guest = Callable[["Line"], None]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(completed, "_DEATH_NOTICE", SHORT)
    monkeypatch.setattr(module, "_GREETING_SECONDS", SHORT)


class Line:
    """The guest's end of the console."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._stream = sock.makefile("rb")

    def listen(self) -> tuple[list[str], str]:
        """Return the next command's lines and its nonce; empty at the stream's end. Greetings are answered."""
        body: list[str] = []
        for raw in self._stream:
            line = raw.decode().rstrip("\n")
            if line.startswith(">"):
                body.append(line[1:])
            elif match := re.fullmatch("run (.*)", line):
                return body, match[1]
            elif match := re.fullmatch("hello (.*) (.*)", line):
                self.say(f"{match[1]}{match[2]} {PID} {match[1]}{match[2]}")
        return [], ""

    def hear(self) -> str:
        """Return what is there, a line at most."""
        return self._stream.readline().decode()

    def say(self, text: str) -> None:
        self._sock.sendall(text.encode())

    def answer(self, nonce: str, out: str = "", status: int = 0, err: str = "") -> None:
        self.say(f"{nonce}{out}{nonce}{status}\n{err}{nonce}")

    def hang_up(self) -> None:
        # Its file keeps a closed socket alive.
        self._sock.shutdown(socket.SHUT_RDWR)


def obedient(line: Line) -> None:
    """Echo each command."""
    while (asked := line.listen())[1]:
        line.answer(asked[1], out="\n".join(asked[0]))


def silent(line: Line) -> None:
    del line


def deaf_after_greeting(line: Line) -> None:
    """Take a command and say half of an answer."""
    _, nonce = line.listen()
    line.say(f"{nonce}half")
    line.listen()


@contextmanager
def talking_to(guest: Guest, timeline: Timeline | None = None) -> Iterator[ConsoleShell]:
    ours, theirs = socket.socketpair()
    line = Line(theirs)
    player = threading.Thread(target=guest, args=(line,), daemon=True)
    shell = ConsoleShell(ours, timeline or Timeline())
    player.start()
    try:
        yield shell
    finally:
        line.hang_up()
        shell.close()
        player.join(LONG)
        theirs.close()


def in_background(shell: ConsoleShell, command: str, started: threading.Event) -> Future[Completed]:
    """Run a command in a thread; return its future once the guest has it."""
    pool = ThreadPoolExecutor(1)
    future = pool.submit(shell.run, command, Deadline(LONG))
    assert started.wait(LONG)
    pool.shutdown(wait=False)
    return future


class TestCommands:
    def test_an_answer_has_its_status_and_both_streams(self) -> None:
        def guest(line: Line) -> None:
            line.answer(line.listen()[1], out="out\n", status=3, err="1 wrong\n")

        with talking_to(guest) as shell:
            assert shell.run("x", Deadline(LONG)) == Completed("x", 3, "out\n", "1 wrong\n")

    def test_commands_arrive_as_they_are(self) -> None:
        command = "one 'two\n\n>three' \\n run 4\nhello 5 \u00fc\r"
        with talking_to(obedient) as shell:
            assert shell.run(command, Deadline(LONG)).stdout == command

    def test_what_was_written_by_others_is_no_part_of_an_answer(self) -> None:
        def guest(line: Line) -> None:
            for word in ("one", "two"):
                _, nonce = line.listen()
                line.say("stray 0\n")
                line.answer(nonce, out=word)
                if word == "one":
                    # After the other answer nobody may be there any more to say it to.
                    line.say("late 1\n")

        with talking_to(guest) as shell:
            assert [shell.run("x", Deadline(LONG)).stdout for _ in range(2)] == ["one", "two"]

    @given(st.lists(st.integers(0, 40)))
    def test_answers_come_in_any_pieces(self, cuts: list[int]) -> None:
        answer = module._Answer("abab", 3)
        data = "strayabab\u00f6utaba\u00fcabab7\nerrabablate".encode()
        # The output has half a nonce in it, and a piece may end with half of one.
        ends = [*sorted(min(cut, len(data)) for cut in cuts), len(data)]
        for begin, end in zip([0, *ends[:-1]], ends, strict=True):
            answer.feed(data[begin:end])
        assert answer.complete
        assert answer.completed() == (7, "\u00f6utaba\u00fc", "err")

    def test_bytes_that_are_no_text_and_floods(self) -> None:
        flood = "x" * (1 << 20)
        with talking_to(lambda line: line.answer(line.listen()[1], out=flood, err="\0\x1b")) as shell:
            done = shell.run("x", Deadline(LONG))
        # Not compared by assert itself, which would show megabytes.
        assert len(done.stdout) == len(flood)
        assert set(done.stdout) == {"x"}
        assert done.stderr == "\0\x1b"

    def test_threads_take_turns(self) -> None:
        with talking_to(obedient) as shell, ThreadPoolExecutor(8) as pool:
            words = [str(number) for number in range(40)]
            assert [done.stdout for done in pool.map(lambda word: shell.run(word, Deadline(LONG)), words)] == words

    def test_the_timeline_has_commands_and_answers(self) -> None:
        timeline = Timeline()
        with talking_to(obedient, timeline) as shell:
            shell.run("a\x1bb", Deadline(LONG))
        asked, answered = [record.text for record in timeline.since(0, Lane.SHELL)]
        assert asked == "$ a\\x1bb"
        assert re.fullmatch(r"= 0 in \d\.\d{3} s: a\\x1bb", answered)


class TestSilence:
    def test_an_echo_is_no_shell(self) -> None:
        def guest(line: Line) -> None:
            while data := line.hear():
                line.say(data)

        with talking_to(guest) as shell, pytest.raises(ShellAbsent):
            shell.run("x", Deadline(LONG))

    def test_a_shell_that_is_not_there_was_sent_nothing(self) -> None:
        timeline = Timeline()
        with talking_to(silent, timeline) as shell:
            for _ in range(2):
                with pytest.raises(ShellAbsent):
                    shell.run("x", Deadline(LONG))
        [step] = timeline.since(0, Lane.STEP)
        assert step.text == "the guest's console shell is lost: ssh does its work until the next boot"

    def test_a_command_without_an_end_takes_the_shell_with_it(self) -> None:
        """The answer may yet come: no later command may get it."""
        with talking_to(deaf_after_greeting) as shell:
            with pytest.raises(DeadlineExpired, match=r"in vain for the guest command `x`: it wrote 'half'"):
                shell.run("x", Deadline(SHORT))
            with pytest.raises(ShellAbsent, match="was lost"):
                shell.run("y", Deadline(LONG))

    def test_the_next_boot_has_a_new_shell_and_the_old_ones_answer_is_nobodys(self) -> None:
        def guest(line: Line) -> None:
            _, stale = line.listen()
            line.say(stale)
            _, nonce = line.listen()
            line.answer(stale, out="stale")
            line.answer(nonce, out="fresh")

        with talking_to(guest) as shell:
            with pytest.raises(DeadlineExpired):
                shell.run("x", Deadline(SHORT))
            shell.forget()
            assert shell.run("y", Deadline(LONG)).stdout == "fresh"

    def test_a_guest_that_takes_nothing(self) -> None:
        def guest(line: Line) -> None:
            line.answer(line.listen()[1])

        with talking_to(guest) as shell:
            shell.run("x", Deadline(LONG))
            with pytest.raises(DeadlineExpired):
                shell.run("x" * (8 << 20), Deadline(SHORT))

    def test_a_turn_that_does_not_come(self) -> None:
        started = threading.Event()

        def guest(line: Line) -> None:
            line.listen()
            started.set()
            line.listen()

        with talking_to(guest) as shell:
            future = in_background(shell, "x", started)
            with pytest.raises(DeadlineExpired, match="its turn"):
                shell.run("y", Deadline(SHORT))
            shell.forget()
            assert isinstance(future.exception(LONG), ShellFailed)


class TestEnds:
    @pytest.mark.parametrize(
        ("end", "words"),
        [
            (ConsoleShell.forget, "the guest was reset meanwhile"),
            (ConsoleShell.hang_up, "the guest halted meanwhile"),
            (lambda shell: shell.ended(PID), "the guest's console shell was killed meanwhile"),
        ],
        ids=["reset", "halt", "killed"],
    )
    def test_a_wait_ends_with_what_it_waits_for(self, end: Callable[[ConsoleShell], None], words: str) -> None:
        started = threading.Event()

        def guest(line: Line) -> None:
            line.listen()
            started.set()
            while (asked := line.listen())[1]:
                line.answer(asked[1], out="new")

        with talking_to(guest) as shell:
            future = in_background(shell, "x", started)
            end(shell)
            error = future.exception(LONG)
            assert isinstance(error, ShellFailed)
            assert not isinstance(error, ShellAbsent)
            assert str(error) == f"no answer to `x`: {words}"
            shell.forget()
            assert shell.run("y", Deadline(LONG)).stdout == "new"

    def test_nothing_is_sent_to_a_guest_that_halted(self) -> None:
        asked: list[str] = []

        def guest(line: Line) -> None:
            while (heard := line.listen())[1]:
                asked.extend(heard[0])
                line.answer(heard[1])

        with talking_to(guest) as shell:
            shell.run("x", Deadline(LONG))
            shell.hang_up()
            with pytest.raises(ShellFailed, match="halted"):
                shell.run("y", Deadline(LONG))
        assert asked == ["x"]

    def test_news_of_an_earlier_shell_are_old(self) -> None:
        started, told = threading.Event(), threading.Event()

        def guest(line: Line) -> None:
            _, nonce = line.listen()
            started.set()
            assert told.wait(LONG)
            line.answer(nonce, out="whole")

        with talking_to(guest) as shell:
            future = in_background(shell, "x", started)
            shell.ended(PID - 1)
            told.set()
            assert future.result(LONG).stdout == "whole"

    def test_the_death_of_qemu_is_the_reason(self) -> None:
        timeline = Timeline()

        def guest(line: Line) -> None:
            line.listen()
            line.hang_up()
            timeline.end(MachineDied("QEMU (pid 1) was killed by SIGKILL", -9))

        with talking_to(guest, timeline) as shell, pytest.raises(MachineDied, match="SIGKILL"):
            shell.run("x", Deadline(LONG))

    def test_a_console_that_closes_for_no_known_reason(self) -> None:
        def guest(line: Line) -> None:
            line.listen()
            line.hang_up()

        with talking_to(guest) as shell:
            for _ in range(2):
                with pytest.raises(ShellFailed, match="QEMU closed the console meanwhile"):
                    shell.run("x", Deadline(LONG))


class TestScript:
    """The image's own script, run by this machine's shell."""

    @pytest.fixture
    def script(self, tmp_path: Path) -> Path:
        text = (recipes_directory() / "common/console_shell").read_text()
        (tmp_path / "script").write_text(text.replace("/run/", f"{tmp_path}/"))
        return tmp_path / "script"

    @contextmanager
    def serving(self, script: Path, *, before: bytes = b"") -> Iterator[tuple[ConsoleShell, subprocess.Popen[bytes]]]:
        ours, theirs = socket.socketpair()
        ours.sendall(before)
        with theirs:
            process = subprocess.Popen(["sh", script], stdin=theirs.fileno(), stdout=theirs.fileno())
        shell = ConsoleShell(ours, Timeline())
        try:
            yield shell, process
        finally:
            process.kill()
            process.wait()
            shell.close()

    def test_whatever_a_command_does_the_shell_stays(self, script: Path) -> None:
        with self.serving(script) as (shell, _):
            for command, status, out in (
                ("echo out; echo err >&2; exit 3", 3, "out\n"),
                ("if", 2, ""),
                ("exec false", 1, ""),
                (": > /nonexistent/x; exit 1", None, ""),
                ("cd /; set -e; false", 1, ""),
                ('read x; echo "$x."', 0, ".\n"),
                ("printf 'a\\nb'\necho \"'\"", 0, "a\nb'\n"),
                ("kill -9 $(sh -c 'echo $PPID')", 137, ""),
            ):
                done = shell.run(command, Deadline(LONG))
                # What a shell says of a redirection that fails differs.
                assert (command, done.status if status is not None else None, done.stdout) == (command, status, out)

    def test_a_command_cannot_write_its_own_end(self, script: Path) -> None:
        with self.serving(script) as (shell, _):
            done = shell.run("set; echo $@ $nonce $line", Deadline(LONG))
        assert done.status == 0
        assert "PATH=" in done.stdout

    def test_an_earlier_shells_commands_are_not_run(self, script: Path, tmp_path: Path) -> None:
        """What a guest that was reset had not read is in the way of the new one's greeting."""
        mark = tmp_path / "mark"
        before = f">touch {mark}\nrun 1234\nrun 5678\n>touch {mark}\n>half a li".encode()
        with self.serving(script, before=before) as (shell, _):
            assert shell.run("echo new", Deadline(LONG)).stdout == "new\n"
        assert not mark.exists()

    def test_its_death_is_not_silent(self, script: Path) -> None:
        with self.serving(script) as (shell, process):
            pid = int(shell.run("echo $$", Deadline(LONG)).stdout)
            assert pid == process.pid
            began = time.monotonic()
            os.kill(pid, signal.SIGKILL)
            with pytest.raises(ShellFailed):
                shell.run("echo", Deadline(LONG))
            assert time.monotonic() - began < LONG
