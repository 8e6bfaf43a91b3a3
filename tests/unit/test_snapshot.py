"""A machine's device state through QMP and a socket, with a monitor that is none."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable
from typing import Any

import pytest

from pytest_spapr.deadline import Deadline
from pytest_spapr.errors import DeadlineExpired, MachineDied, MachineError, QmpRefused
from pytest_spapr.qemu.snapshot import restore, save
from pytest_spapr.timeline import Lane, Timeline

from .fake_qemu import descriptors

STATE = os.urandom(3 << 20)


class Monitor:
    """A QEMU that migrates as it is told to.

    :param migrate: what it does with its end of the socket. :param status: how that ends, None for never.
    """

    def __init__(self, timeline: Timeline, migrate: Callable[[socket.socket], object], status: str | None = "completed") -> None:
        self.timeline = timeline
        self.migrate = migrate
        self.status = status
        self.asked: list[tuple[str, Any]] = []
        self.threads: list[threading.Thread] = []
        self.given: socket.socket | None = None

    def give(self, descriptor: int, name: str) -> None:
        self.asked.append(("getfd", name))
        self.given = socket.socket(fileno=os.dup(descriptor))

    def execute(self, command: str, arguments: Any = None) -> Any:
        self.asked.append((command, arguments))
        if command in ("migrate", "migrate-incoming"):
            self.threads.append(threading.Thread(target=self._run))
            self.threads[-1].start()
        return {"error-desc": "a device said no"} if command == "query-migrate" else {}

    def _run(self) -> None:
        assert self.given is not None
        with self.given:
            self.migrate(self.given)
        if self.status:
            for status in ("setup", "active", self.status):
                data = {"event": "MIGRATION", "data": {"status": status}}
                self.timeline.record(Lane.EVENT, f"MIGRATION status={status}", data)


@pytest.fixture
def timeline() -> Timeline:
    return Timeline()


@pytest.fixture(autouse=True)
def nothing_stays() -> Any:
    before = descriptors(), threading.active_count()
    yield
    assert (descriptors(), threading.active_count()) == before


def joined(monitor: Monitor) -> None:
    for thread in monitor.threads:
        thread.join(10)


def received(sock: socket.socket) -> bytes:
    data = b""
    while chunk := sock.recv(65536):
        data += chunk
    return data


def test_the_whole_state_comes_out(timeline: Timeline) -> None:
    monitor: Any = Monitor(timeline, lambda sock: sock.sendall(STATE))
    assert save(monitor, timeline, Deadline(10)) == STATE
    assert [name for name, _ in monitor.asked] == ["migrate-set-capabilities", "getfd", "migrate"]
    assert monitor.asked[-1] == ("migrate", {"uri": "fd:state"})
    capabilities = monitor.asked[0][1]["capabilities"]
    assert {"capability": "x-ignore-shared", "state": True} in capabilities
    joined(monitor)


def test_the_whole_state_goes_in(timeline: Timeline) -> None:
    got: list[bytes] = []
    monitor: Any = Monitor(timeline, lambda sock: got.append(received(sock)))
    restore(monitor, timeline, STATE, Deadline(10))
    joined(monitor)
    assert got == [STATE]


@pytest.mark.parametrize("status", ["failed", "cancelled"])
def test_a_migration_that_fails_says_why(timeline: Timeline, status: str) -> None:
    monitor: Any = Monitor(timeline, lambda sock: sock.sendall(b"half"), status)
    with pytest.raises(MachineError, match=f"^QEMU's migrate {status}: a device said no$"):
        save(monitor, timeline, Deadline(10))
    joined(monitor)


def test_a_qemu_that_stops_reading_fails_and_keeps_nobody_waiting(timeline: Timeline) -> None:
    monitor: Any = Monitor(timeline, lambda sock: sock.recv(10), "failed")
    with pytest.raises(MachineError, match="QEMU's migrate-incoming failed"):
        restore(monitor, timeline, STATE, Deadline(10))
    joined(monitor)


def test_a_qemu_that_dies_ends_it_at_once(timeline: Timeline) -> None:
    def die(sock: socket.socket) -> None:
        timeline.end(MachineDied("QEMU was killed by SIGSEGV", -11))

    monitor: Any = Monitor(timeline, die, None)
    with pytest.raises(MachineDied):
        restore(monitor, timeline, STATE, Deadline(10))
    joined(monitor)


def test_silence_ends_with_the_deadline(timeline: Timeline) -> None:
    told = threading.Event()
    monitor: Any = Monitor(timeline, lambda sock: told.wait(10), None)
    with pytest.raises(DeadlineExpired, match="QEMU's migrate"):
        save(monitor, timeline, Deadline(0.05))
    told.set()
    joined(monitor)


def test_a_stream_that_never_ends_ends_with_the_deadline(timeline: Timeline) -> None:
    """QEMU says that it is done, and keeps its end of the socket."""
    kept: list[socket.socket] = []
    monitor: Any = Monitor(timeline, lambda sock: kept.append(sock.dup()))
    with pytest.raises(DeadlineExpired, match="the stream of QEMU's migrate to end"):
        save(monitor, timeline, Deadline(0.2))
    joined(monitor)
    kept[0].close()


def test_what_qemu_refuses_is_told(timeline: Timeline) -> None:
    monitor: Any = Monitor(timeline, lambda sock: None)

    def refuse(command: str, arguments: Any = None) -> Any:
        if command == "migrate":
            raise QmpRefused(command, "GenericError", "blocked")
        return {}

    monitor.execute = refuse
    with pytest.raises(QmpRefused, match="blocked"):
        save(monitor, timeline, Deadline(10))
    monitor.given.close()
