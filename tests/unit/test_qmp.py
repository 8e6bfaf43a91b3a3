"""The monitor, against scripted QEMUs."""

from __future__ import annotations

import gc
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest

from pytest_spapr.deadline import Deadline
from pytest_spapr.errors import DeadlineExpired, MachineDied, MachineError, QmpRefused
from pytest_spapr.qemu import qmp as qmp_module
from pytest_spapr.qemu.process import QemuProcess
from pytest_spapr.qemu.qmp import Qmp, QmpLoop, event_text
from pytest_spapr.timeline import Lane, Timeline

from . import fake_qemu


@pytest.fixture(scope="module")
def loop() -> Iterator[QmpLoop]:
    with QmpLoop() as loop:
        yield loop


@pytest.fixture
def timeline() -> Timeline:
    return Timeline()


class Bench:
    """A scripted QEMU and its monitor."""

    def __init__(self, loop: QmpLoop, timeline: Timeline) -> None:
        self.loop = loop
        self.timeline = timeline
        self.process: QemuProcess
        self.qmp: Qmp | None = None

    def connect(self, script: fake_qemu.Script | None = None, *, seconds: float = 10, greeting: float = 10, **more: Any) -> Qmp:
        ours, theirs = socket.socketpair()
        with theirs:
            command = fake_qemu.command({**(script or {}), **more})
            self.process = QemuProcess(
                [*command, "-chardev", f"socket,id=qmp,fd={theirs.fileno()}"], self.timeline, env={}, pass_fds=[theirs.fileno()]
            )
        self.qmp = Qmp.connect(ours, self.loop, self.timeline, Deadline(greeting), seconds=seconds)
        return self.qmp

    def wait(self, text: str) -> None:
        self.timeline.wait(lambda record: record.text == text or None, since=0, deadline=Deadline(10), what=text)

    def close(self) -> None:
        if self.qmp is not None:
            self.qmp.close()
        self.process.close()


@pytest.fixture
def bench(loop: QmpLoop, timeline: Timeline) -> Iterator[Bench]:
    bench = Bench(loop, timeline)
    yield bench
    bench.close()


DELETED = {"device": "core1", "path": "/machine/peripheral/core1"}


def test_a_command_and_its_answer(bench: Bench) -> None:
    assert bench.connect().execute("query-status") == {"status": "prelaunch", "running": False}


STOP: dict[str, Any] = {"event": ["STOP", {}]}
RESUME: dict[str, Any] = {"event": ["RESUME", {}]}
DELETION: dict[str, Any] = {"event": ["DEVICE_DELETED", {"device": "core1", "path": "/machine/peripheral/core1"}]}


@pytest.mark.parametrize(
    ("said", "events"),
    [
        pytest.param([STOP, RESUME], [], id="for the moment of saving"),
        pytest.param([STOP, DELETION, RESUME], ["DEVICE_DELETED"], id="with an event in that moment"),
        pytest.param([STOP], ["STOP"], id="somebody else's, just before"),
        pytest.param([RESUME], ["RESUME"], id="somebody else's continue"),
        pytest.param([], [], id="of a machine that was paused"),
    ],
)
def test_the_stop_for_saving_the_devices_is_nobodys(bench: Bench, said: list[Any], events: list[str]) -> None:
    qmp = bench.connect({"xen-save-devices-state": [*said, {"return": {}}], "stop": [STOP, {"return": {}}]})
    qmp.execute("xen-save-devices-state", {"filename": "/dev/fdset/0"})
    assert [record.event for record in bench.timeline.since(0, Lane.EVENT)] == events
    said_at_all = [record for record in bench.timeline.since(0, Lane.EVENT, Lane.QMP) if record.data and "event" in record.data]
    assert len(said_at_all) == len(said)
    qmp.execute("stop")
    assert [record.event for record in bench.timeline.since(0, Lane.EVENT)] == [*events, "STOP"]


def test_a_refused_saving_is_over(bench: Bench) -> None:
    qmp = bench.connect({"xen-save-devices-state": [{"error": ["GenericError", "no"]}], "stop": [STOP, {"return": {}}]})
    with pytest.raises(QmpRefused):
        qmp.execute("xen-save-devices-state")
    qmp.execute("stop")
    assert [record.event for record in bench.timeline.since(0, Lane.EVENT)] == ["STOP"]


def test_an_event_may_come_before_the_negotiations_answer(bench: Bench) -> None:
    """QEMU has another thread tell of it. qemu.qmp would give up."""
    qmp = bench.connect(qmp_capabilities=[{"event": ["DEVICE_DELETED", DELETED]}, {"return": {}}])
    bench.wait("DEVICE_DELETED device=core1 path=/machine/peripheral/core1")
    assert qmp.execute("query-target") == {"arch": "ppc64"}


def test_a_line_of_the_human_monitor(bench: Bench) -> None:
    assert bench.connect({"human-monitor-command": [{"return": "no devices\r\n"}]}).hmp("info qtree") == "no devices\r\n"
    [sent] = [record for record in bench.timeline.since(0, Lane.QMP) if "human" in record.text]
    assert sent.text == '-> human-monitor-command {"command-line": "info qtree"}'


def test_everything_is_on_the_timeline_in_the_order_of_the_wire(bench: Bench) -> None:
    """Events before the greeting's end, before an answer and behind it; nobody listens for any of them."""
    qmp = bench.connect(
        qmp_capabilities=[{"return": {}}, {"event": ["RESUME", {}]}],
        device_del=[
            {"event": ["DEVICE_DELETED", {"path": "/machine/x/thread[0]"}]},
            {"return": {}},
            {"event": ["DEVICE_DELETED", DELETED]},
        ],
        object_add=[{"error": ["GenericError", "can't use already busy memdev: mm"]}],
    )
    bench.wait("RESUME")
    qmp.execute("device_del", {"id": "core1"})
    bench.wait("DEVICE_DELETED device=core1 path=/machine/peripheral/core1")
    with pytest.raises(QmpRefused):
        qmp.execute("object_add", {"id": "mm"})
    records = [(record.lane, record.text) for record in bench.timeline.since(0, Lane.QMP, Lane.EVENT)]
    assert records == [
        (Lane.QMP, "<- greeting"),
        (Lane.QMP, "-> qmp_capabilities {}"),
        (Lane.QMP, "<- {}"),
        (Lane.EVENT, "RESUME"),
        (Lane.QMP, '-> device_del {"id": "core1"}'),
        (Lane.EVENT, "DEVICE_DELETED path=/machine/x/thread[0]"),
        (Lane.QMP, "<- {}"),
        (Lane.EVENT, "DEVICE_DELETED device=core1 path=/machine/peripheral/core1"),
        (Lane.QMP, '-> object_add {"id": "mm"}'),
        (Lane.QMP, "<- error GenericError: can't use already busy memdev: mm"),
    ]


def test_an_event_has_all_its_data(bench: Bench) -> None:
    bench.connect(stop=[{"event": ["DEVICE_DELETED", DELETED]}, {"return": {}}]).execute("stop")
    [event] = bench.timeline.since(0, Lane.EVENT)
    assert event.data == {"event": "DEVICE_DELETED", "data": DELETED, "timestamp": {"seconds": 1, "microseconds": 2}}


def test_no_event_is_kept_a_second_time(bench: Bench) -> None:
    qmp = bench.connect(stop=[*([{"event": ["RTC_CHANGE", {}]}] * 50), {"return": {}}])
    qmp.execute("stop")
    assert len(bench.timeline.since(0, Lane.EVENT)) == 50
    assert qmp._client.events.empty()
    assert qmp._client.events.history == ()


def test_long_answers_are_short_for_people_and_whole_for_machines(bench: Bench) -> None:
    bench.connect(query_schema=[{"return": ["x" * 5000]}]).execute("query_schema")
    answer = bench.timeline.since(0, Lane.QMP)[-1]
    assert len(answer.text) < 400
    assert answer.text.endswith("... (5004 characters)")
    assert answer.data is not None
    assert answer.data["return"] == ["x" * 5000]


def test_a_refusal(bench: Bench) -> None:
    qmp = bench.connect(device_del=[{"error": ["DeviceNotFound", "Device 'nope' not found"]}])
    with pytest.raises(QmpRefused) as refusal:
        qmp.execute("device_del", {"id": "nope"})
    error = refusal.value
    assert (error.command, error.error_class, error.description) == ("device_del", "DeviceNotFound", "Device 'nope' not found")
    assert str(error) == "device_del: DeviceNotFound: Device 'nope' not found"
    assert qmp.execute("query-status")


def test_a_qemu_that_is_gone_as_soon_as_it_has_greeted(loop: QmpLoop, timeline: Timeline) -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        theirs.sendall(
            b'{"QMP": {"version": {"qemu": {"micro": 0, "minor": 1, "major": 11}, "package": ""}, "capabilities": []}}\r\n'
        )
    timeline.end(MachineDied("QEMU ended with status 1", 1, ()))
    with pytest.raises(MachineDied, match="ended with status 1"):
        Qmp.connect(ours, loop, timeline, Deadline(10), seconds=10)


def test_a_descriptor_is_given_with_its_name(bench: Bench) -> None:
    qmp = bench.connect(getfd=[{"return": {}}])
    ours, theirs = socket.socketpair()
    with ours, theirs:
        qmp.give(theirs.fileno(), "state")
    assert bench.timeline.since(0, Lane.QMP)[-2].text == '-> getfd {"fdname": "state"}'


def test_a_descriptor_that_is_not_taken(bench: Bench) -> None:
    qmp = bench.connect(getfd=[{"error": ["GenericError", "No file descriptor supplied via SCM_RIGHTS"]}])
    ours, theirs = socket.socketpair()
    with ours, theirs, pytest.raises(QmpRefused, match="No file descriptor supplied"):
        qmp.give(theirs.fileno(), "state")


def test_a_descriptor_for_a_qemu_that_has_ended(bench: Bench) -> None:
    qmp = bench.connect()
    bench.timeline.end(MachineDied("QEMU was killed by SIGSEGV", -11, ()))
    ours, theirs = socket.socketpair()
    with ours, theirs, pytest.raises(MachineDied, match="SIGSEGV"):
        qmp.give(theirs.fileno(), "state")


def test_a_descriptor_for_a_monitor_that_broke_off(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: object) -> None:
        bench.timeline.end(MachineDied("QEMU was killed by SIGSEGV", -11, ()))
        raise BrokenPipeError

    qmp = bench.connect()
    monkeypatch.setattr(qmp._client, "send_fd_scm", broken)
    ours, theirs = socket.socketpair()
    with ours, theirs, pytest.raises(MachineDied, match="SIGSEGV"):
        qmp.give(theirs.fileno(), "state")


def test_commands_from_many_threads(bench: Bench) -> None:
    qmp = bench.connect()
    answers: list[Any] = []
    threads = [threading.Thread(target=lambda: answers.append(qmp.execute("query-status"))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(answers) == 8


def test_the_loop_does_not_wait_for_itself(bench: Bench) -> None:
    """A timeline's listener is called in the thread that made the record."""
    qmp = bench.connect(stop=[{"event": ["STOP", {}]}, {"return": {}}])
    raised: list[BaseException] = []

    def listener(record: object) -> None:
        if not raised:
            try:
                qmp.execute("query-status")
            except RuntimeError as error:
                raised.append(error)

    bench.timeline.listen(listener)
    qmp.execute("stop")
    assert "cannot wait for a monitor" in str(raised[0])


class TestDeath:
    """Of QEMU: whoever waits is told at once, and why."""

    def test_before_the_greeting(self, bench: Bench) -> None:
        with pytest.raises(MachineDied) as died:
            bench.connect(start=[{"stderr": "unsupported machine"}, {"exit": 1}])
        assert died.value.exit_status == 1
        assert died.value.stderr == ("unsupported machine",)
        assert died.value.__cause__ is None

    def test_at_the_negotiation(self, bench: Bench) -> None:
        with pytest.raises(MachineDied, match="SIGSEGV"):
            bench.connect(qmp_capabilities=[{"signal": signal.SIGSEGV}])

    def test_in_a_command(self, bench: Bench) -> None:
        qmp = bench.connect(seconds=60, device_add=[{"stderr": "tcg_register_thread: failed"}, {"signal": signal.SIGABRT}])
        start = time.monotonic()
        with pytest.raises(MachineDied, match="was killed by SIGABRT") as died:
            qmp.execute("device_add", {"driver": "core"})
        assert time.monotonic() - start < 2
        assert died.value.stderr == ("tcg_register_thread: failed",)

    def test_from_outside_while_a_command_waits(self, bench: Bench) -> None:
        qmp = bench.connect(seconds=60, stop=[{"event": ["STOP", {}]}, {"hang": True}])

        def kill() -> None:
            bench.wait("STOP")
            os.kill(bench.process.pid, signal.SIGKILL)

        killer = threading.Thread(target=kill)
        killer.start()
        with pytest.raises(MachineDied, match="was killed by SIGKILL"):
            qmp.execute("stop")
        killer.join()

    def test_before_a_command(self, bench: Bench) -> None:
        qmp = bench.connect()
        bench.process.kill()
        since = bench.timeline.mark()
        with pytest.raises(MachineDied, match="was ended by the test"):
            qmp.execute("query-status")
        assert bench.timeline.since(since, Lane.QMP) == []

    def test_known_before_the_monitor_notices(self, bench: Bench) -> None:
        qmp = bench.connect()
        since = bench.timeline.mark()
        bench.timeline.end(MachineDied("QEMU was killed by SIGKILL", -9))
        with pytest.raises(MachineDied):
            qmp.execute("query-status")
        assert bench.timeline.since(since, Lane.QMP) == []

    def test_at_quit(self, bench: Bench) -> None:
        bench.connect().execute("quit")
        assert bench.process.wait(Deadline(10)) == 0

    def test_closing_the_monitor_of_a_dead_one_is_quiet(self, bench: Bench) -> None:
        qmp = bench.connect()
        bench.process.kill()
        qmp.close()
        qmp.close()


class TestLiveButBroken:
    """QEMU lives, and its monitor does not do what it should."""

    def test_it_never_greets(self, bench: Bench) -> None:
        with pytest.raises(DeadlineExpired, match=r"waited 0\.3 s in vain for QEMU's monitor to greet"):
            bench.connect(start=[{"hang": True}], greeting=0.3)

    def test_it_does_not_answer(self, bench: Bench) -> None:
        qmp = bench.connect(seconds=0.3, device_del=[{"event": ["STOP", {}]}, {"hang": True}])
        with pytest.raises(DeadlineExpired) as expired:
            qmp.execute("device_del", {"id": "core1"})
        assert str(expired.value) == (
            "waited 0.3 s in vain for QEMU's answer to device_del: QEMU lives, and its monitor is silent since `STOP`"
        )

    def test_a_command_may_have_its_own_limit(self, bench: Bench) -> None:
        qmp = bench.connect(seconds=60, stop=[{"hang": True}])
        with pytest.raises(DeadlineExpired, match=r"waited 0\.1 s"):
            qmp.execute("stop", seconds=0.1)

    def test_an_answer_that_comes_too_late_is_not_the_next_commands(self, bench: Bench) -> None:
        qmp = bench.connect(stop=[], cont=[{"return": "of cont"}])
        with pytest.raises(DeadlineExpired):
            qmp.execute("stop", seconds=0.1)
        assert qmp.execute("cont") == "of cont"
        assert qmp._client._pending == {}

    def test_it_hangs_up(self, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(qmp_module, "_DEATH_NOTICE", 0.2)
        qmp = bench.connect(stop=[{"hang_up": True}])
        with pytest.raises(MachineError, match="QEMU's monitor broke off during stop although QEMU lives") as broken:
            qmp.execute("stop")
        assert not isinstance(broken.value, MachineDied)

    @pytest.mark.parametrize("answer", [[{"error": ["GenericError", "no"]}], [{"hang_up": True}]], ids=["refuses", "hangs up"])
    def test_it_does_not_negotiate(self, bench: Bench, monkeypatch: pytest.MonkeyPatch, answer: list[Any]) -> None:
        monkeypatch.setattr(qmp_module, "_DEATH_NOTICE", 0.2)
        with pytest.raises(MachineError, match="broke off during its greeting although QEMU lives"):
            bench.connect(qmp_capabilities=answer)

    def test_its_negotiation_has_no_end(self, bench: Bench) -> None:
        with pytest.raises(DeadlineExpired, match=r"waited 0\.3 s in vain for QEMU's monitor to greet"):
            bench.connect(qmp_capabilities=[{"hang": True}], greeting=0.3)

    def test_it_speaks_something_else(self, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(qmp_module, "_DEATH_NOTICE", 0.2)
        with pytest.raises(MachineError, match="broke off during its greeting although QEMU lives"):
            bench.connect(start=[{"return": {}}, {"hang": True}])


@pytest.mark.parametrize(
    "raw",
    [
        pytest.param(["no JSON\r\n", 1], id="text"),
        pytest.param(['{"return": \r\n', 1], id="a message that was cut off"),
        pytest.param(["\xff\xfe\x00\r\n", 1], id="bytes"),
        pytest.param(["[]\r\n", 1], id="a list"),
        pytest.param(["{}\r\n", 1], id="nothing in it"),
        pytest.param(['{"return": {}}\r\n', 1], id="an answer to nobody"),
        pytest.param(["[", 200_000], id="no end"),
        pytest.param(["x", 11 << 20], id="11 MiB in a line"),
    ],
)
def test_rubbish_on_the_monitor_is_an_error_and_soon(bench: Bench, monkeypatch: pytest.MonkeyPatch, raw: list[Any]) -> None:
    monkeypatch.setattr(qmp_module, "_DEATH_NOTICE", 0.2)
    qmp = bench.connect(stop=[{"raw": raw}, {"raw": ["\r\n", 1]}, {"hang": True}])
    with pytest.raises(MachineError, match="although QEMU lives"):
        qmp.execute("stop", seconds=5)
    with pytest.raises(MachineError):
        qmp.execute("cont", seconds=5)


@pytest.mark.parametrize(
    "raw",
    [
        '{"return": {}, "id": "nobody"}\r\n',
        '{"event": "NEW", "data": 3, "timestamp": {"seconds": 1, "microseconds": 1}}\r\n',
        '{"event": "NEW", "timestamp": {"seconds": -1, "microseconds": -1}}\r\n',
        '{"event": "NEW", "data": {"device": "\\u001b[31m"}, "timestamp": {"seconds": 1, "microseconds": 1}}\r\n',
    ],
)
def test_a_message_that_means_nothing_disturbs_nobody(bench: Bench, raw: str) -> None:
    qmp = bench.connect(stop=[{"raw": [raw, 1]}, {"return": {}}])
    assert qmp.execute("stop") == {}
    assert qmp.execute("query-status") == {"status": "prelaunch", "running": False}


def test_nothing_of_a_monitor_stays_behind(loop: QmpLoop, timeline: Timeline) -> None:
    descriptors = fake_qemu.descriptors()
    for script in ({}, {"start": [{"exit": 1}]}, {"start": [{"hang": True}]}, {"qmp_capabilities": [{"exit": 1}]}):
        bench = Bench(loop, Timeline())
        with suppress(MachineDied, DeadlineExpired):
            bench.connect(script, greeting=0.5)
        bench.close()
    gc.collect()
    assert fake_qemu.descriptors() == descriptors


def test_a_loop_cuts_off_what_is_still_connected(timeline: Timeline) -> None:
    """A machine that is kept has nobody who closes its monitor."""
    threads, descriptors = set(threading.enumerate()), fake_qemu.descriptors()
    with QmpLoop() as loop:
        bench = Bench(loop, timeline)
        bench.connect()
        bench.qmp = None
    bench.close()
    gc.collect()
    assert fake_qemu.descriptors() == descriptors
    assert set(threading.enumerate()) == threads


@pytest.mark.parametrize(
    ("event", "text"),
    [
        ({"event": "DEVICE_DELETED", "data": DELETED}, "DEVICE_DELETED device=core1 path=/machine/peripheral/core1"),
        ({"event": "STOP"}, "STOP"),
    ],
)
def test_event_text(event: dict[str, Any], text: str) -> None:
    assert event_text(event) == text
