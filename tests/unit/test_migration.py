"""A move from one QEMU to another, with monitors that are none."""

from __future__ import annotations

import os
import re
import socket
from typing import Any

import pytest

from pytest_spapr.deadline import Deadline
from pytest_spapr.errors import DeadlineExpired, MachineDied, MachineError, QmpRefused
from pytest_spapr.qemu.migration import move
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

    def monitor(self, name: str) -> Any:
        return Monitor(self, name)

    def move(self, seconds: float = 10) -> None:
        move(self.monitor("source"), self.monitor("destination"), self.arrived, Deadline(seconds))


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
            if isinstance(pair.end, MachineDied):
                pair.arrived.end(pair.end)
            elif pair.end:
                pair.arrived.record(Lane.EVENT, "", {"event": "MIGRATION", "data": {"status": pair.end}})
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
    close(pair)


def test_silence_ends_with_the_deadline() -> None:
    pair = Pair(None)
    with pytest.raises(DeadlineExpired, match="the destination to have the machine's state"):
        pair.move(0.05)
    close(pair)
