"""A move from one QEMU to another, with monitors that are none."""

from __future__ import annotations

import os
import re
import socket
import stat
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from pytest_spapr.deadline import Deadline
from pytest_spapr.errors import DeadlineExpired, MachineDied, MachineError, QmpRefused
from pytest_spapr.qemu.migration import move, move_through
from pytest_spapr.timeline import Branch, Lane, Timeline

from .fake_qemu import descriptors


class Pair:
    """Two monitors. :param end: how the destination ends; None for never. :param refused: what the source says to ``migrate``."""

    def __init__(self, end: str | MachineDied | None, refused: str | None = None) -> None:
        self.timeline = Timeline()
        self.arrived = Branch(self.timeline)
        self.end = end
        self.refused = refused
        self.given: list[socket.socket] = []
        self.asked: list[tuple[str, str]] = []
        self.states = ["finish-migrate", "finish-migrate", "paused"]

    def tell(self, where: Timeline, status: str) -> None:
        where.record(Lane.EVENT, "", {"event": "MIGRATION", "data": {"status": status}})

    def monitor(self, name: str) -> Any:
        return Monitor(self, name)

    def move(self, seconds: float = 10) -> None:
        move(self.timeline, self.monitor("source"), self.monitor("destination"), self.arrived, Deadline(seconds))


class Monitor:
    def __init__(self, pair: Pair, name: str) -> None:
        self.pair = pair
        self.name = name
        self.dead = False

    def give(self, descriptor: int, name: str) -> None:
        assert name == "move"
        self.pair.given.append(socket.socket(fileno=os.dup(descriptor)))

    def execute(self, command: str, arguments: Any = None) -> Any:
        pair = self.pair
        pair.asked.append((self.name, command))
        if command == "migrate":
            if pair.refused:
                raise QmpRefused(command, "GenericError", pair.refused)
            pair.tell(pair.timeline, "setup")
            if isinstance(pair.end, MachineDied):
                pair.arrived.end(pair.end)
            elif pair.end:
                pair.tell(pair.arrived, pair.end)
        if command == "migrate_cancel":
            pair.tell(pair.timeline, "cancelled")
        if command == "query-status":
            return {"status": pair.states.pop(0)}
        return {"error-desc": f"the {self.name} says why"} if command == "query-migrate" else {}


@pytest.fixture(autouse=True)
def nothing_stays() -> Any:
    before = descriptors()
    yield
    assert descriptors() == before


def close(pair: Pair) -> None:
    for end in pair.given:
        end.close()


def test_they_are_joined_by_one_socket() -> None:
    pair = Pair("completed")
    pair.move()
    assert [one for one in pair.asked if one[1].startswith("migrate") and "set" not in one[1]] == [
        ("destination", "migrate-incoming"),
        ("source", "migrate"),
    ]
    source, destination = pair.given
    source.sendall(b"state")
    assert destination.recv(10) == b"state"
    close(pair)


@pytest.mark.parametrize(
    ("end", "refused", "words"),
    [
        (None, "a device said no", "the machine cannot be migrated: a device said no"),
        ("failed", None, "the machine cannot be migrated: the destination failed: the destination says why"),
        (MachineDied("QEMU ended", 1), None, "the machine cannot be migrated: the destination: QEMU ended.*the source says why"),
    ],
    ids=["refused", "failed", "died"],
)
def test_what_went_wrong_is_told_and_the_machine_lives(end: str | MachineDied | None, refused: str | None, words: str) -> None:
    pair = Pair(end, refused)
    with pytest.raises(MachineError) as failed:
        pair.move()
    assert re.match(words, str(failed.value), re.DOTALL)
    assert not isinstance(failed.value, MachineDied)
    assert pair.timeline.ended is None
    # It goes on when QEMU is done with what it had begun, and no sooner.
    assert (("source", "migrate_cancel") in pair.asked, len(pair.states)) == ((False, 3) if refused else (True, 0))
    close(pair)


def test_silence_ends_with_the_deadline() -> None:
    pair = Pair(None)
    with pytest.raises(DeadlineExpired, match="the destination to have the machine's state"):
        pair.move(0.05)
    close(pair)


STATE = os.urandom(3 << 20)


class Storing:
    """Two QEMUs that migrate through sockets of their own. The parameters are as a pair's."""

    def __init__(self, *, source: str = "completed", destination: str = "completed", refused: str | None = None) -> None:
        self.left = Timeline()
        self.arrived = Branch(self.left)
        self.refused = refused
        self.read = b""
        self.threads: list[threading.Thread] = []
        self.source = Streaming(self, self.left, self._write, source)
        self.destination = Streaming(self, self.arrived, self._read, destination)

    def move(self, file: Path) -> None:
        source: Any = self.source
        destination: Any = self.destination
        try:
            move_through(file, self.left, source, destination, self.arrived, Deadline(10))
        finally:
            for thread in self.threads:
                thread.join(10)
            for one in (source, destination):
                if one.given:
                    one.given.close()

    def _write(self, end: socket.socket) -> None:
        with suppress(OSError):
            end.sendall(STATE)

    def _read(self, end: socket.socket) -> None:
        while data := end.recv(1 << 16):
            self.read += data


class Streaming:
    def __init__(self, both: Storing, timeline: Timeline, run: Callable[[socket.socket], None], end: str) -> None:
        self.both = both
        self.timeline = timeline
        self.run = run
        self.end = end
        self.dead = False
        self.given: socket.socket | None = None

    def give(self, descriptor: int, name: str) -> None:
        self.given = socket.socket(fileno=os.dup(descriptor))

    def execute(self, command: str, arguments: Any = None) -> Any:
        if command == "migrate" and self.both.refused:
            raise QmpRefused(command, "GenericError", self.both.refused)
        if command in ("migrate", "migrate-incoming"):
            thread = threading.Thread(target=self._migrate)
            self.both.threads.append(thread)
            thread.start()
        return {"query-migrate": {"error-desc": "a device said no"}, "query-status": {"status": "paused"}}.get(command, {})

    def _migrate(self) -> None:
        assert self.given is not None
        with self.given:
            self.run(self.given)
        self.timeline.record(Lane.EVENT, "", {"event": "MIGRATION", "data": {"status": self.end}})


def test_a_state_is_stored_whole_and_then_read(tmp_path: Path) -> None:
    both = Storing()
    both.move(tmp_path / "state")
    assert both.read == (tmp_path / "state").read_bytes() == STATE
    assert stat.filemode((tmp_path / "state").stat().st_mode) == "-rw-------"


def test_another_ones_file_is_not_written_over(tmp_path: Path) -> None:
    file = tmp_path / "state"
    file.write_text("mine")
    both = Storing(source="failed")
    with pytest.raises(MachineError, match=f"cannot be moved through {file}: .*File exists"):
        both.move(file)
    assert (file.read_text(), both.read) == ("mine", b"")


@pytest.mark.parametrize(
    ("both", "words"),
    [
        (Storing(refused="a device said no"), "a device said no"),
        (Storing(source="failed"), "migrate failed: a device said no"),
        (Storing(destination="failed"), "migrate-incoming failed: a device said no"),
    ],
    ids=["refused", "not stored", "not taken"],
)
def test_what_went_wrong_on_the_way_through_a_file_is_told(tmp_path: Path, both: Storing, words: str) -> None:
    with pytest.raises(MachineError, match=rf"cannot be moved through {tmp_path}/state: .*{words}"):
        both.move(tmp_path / "state")
    assert list(tmp_path.iterdir()) == [], "another try finds no file in its way"
