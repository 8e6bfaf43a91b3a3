"""QEMU's monitor: a synchronous face over ``qemu.qmp`` clients that live on one background event loop."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import socket
import threading
import weakref
from collections.abc import Coroutine, Iterator, Mapping
from typing import Any, Final, Self, TypeVar

from qemu.qmp import ExecInterruptedError, ExecuteError, QMPClient, QMPError
from qemu.qmp.message import Message

from pytest_spapr.deadline import Deadline
from pytest_spapr.errors import DeadlineExpired, MachineDied, MachineError, QmpRefused
from pytest_spapr.timeline import Lane, Timeline

T = TypeVar("T")

# How long a monitor that broke off waits for the news that QEMU is gone: the process's watcher has it milliseconds later.
_DEATH_NOTICE: Final = 5.0

#: The command that saves the state of all devices (``qemu.vmstate``). A build that lacks it cannot be asked.
SAVE_DEVICES: Final = "xen-save-devices-state"
_SHORT: Final = 300


class QmpLoop:
    """One asyncio loop in one daemon thread, for all monitors of a session."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._clients: weakref.WeakSet[QMPClient] = weakref.WeakSet()
        self._thread = threading.Thread(target=self._loop.run_forever, name="spapr-qmp", daemon=True)
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, T], deadline: Deadline) -> T:
        """Run a coroutine on the loop and return its result. From any thread but the loop's own, which would wait for itself.

        :raises TimeoutError: the deadline ran out; the coroutine is cancelled.
        """
        if threading.current_thread() is self._thread:
            work.close()
            raise RuntimeError("the monitors' own thread cannot wait for a monitor: do it in another one")
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result(deadline.remaining)
        except BaseException:
            # Also at Ctrl-C: nobody waits for the result any more.
            future.cancel()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop the loop and its thread. Monitors that are still connected are cut off."""
        asyncio.run_coroutine_threadsafe(self._disconnect_all(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def adopt(self, client: QMPClient) -> None:
        """Take note of a client that lives on this loop, to be disconnected with it at the latest."""
        self._clients.add(client)

    async def _disconnect_all(self) -> None:
        await asyncio.gather(*(client.disconnect() for client in self._clients), return_exceptions=True)


class _Client(QMPClient):
    """A client that puts every message on the timeline in the order of the wire.

    ``_cb_inbound`` and ``_cb_outbound`` are qemu.qmp's documented hooks. Its own event queues would keep every event a second time,
    unread, so the one that cannot be removed lets nothing in: the journal is the timeline.
    """

    def __init__(self, timeline: Timeline) -> None:
        super().__init__("spapr")
        self._timeline = timeline
        self._saving: object = None
        self._held: dict[str, Any] | None = None
        self.events.event_filter = lambda _: False
        self.negotiate = False
        # It logs a broken connection as an error, above the error of ours that says why it broke.
        self.logger.setLevel(logging.CRITICAL)

    async def join(self, sock: socket.socket) -> None:
        """Connect and negotiate.

        Not by qemu.qmp (0.0.6), which takes an event for the answer that it waits for: QEMU sends events from the moment that it has
        understood ``qmp_capabilities``, and one that another thread has just then comes before the answer.
        """
        try:
            await self.connect(sock)
        except AssertionError as error:
            # It asserts that it is still connected: QEMU greeted and was gone.
            raise EOFError("QEMU's monitor broke off after its greeting") from error
        try:
            offers_oob = self.greeting is not None and "oob" in self.greeting.QMP.capabilities
            await self.execute("qmp_capabilities", {"enable": ["oob"]} if offers_oob else {})
        except BaseException:
            with contextlib.suppress(QMPError, OSError, EOFError):
                await self.disconnect()
            raise

    def _cb_inbound(self, msg: Message) -> Message:
        body = dict(msg)
        if self._saving is not None and self._is_qemus_own_stop(body):
            return super()._cb_inbound(msg)
        if "event" in body:
            self._timeline.record(Lane.EVENT, event_text(body), body)
        elif isinstance(error := body.get("error"), dict):
            self._timeline.record(Lane.QMP, f"<- error {error.get('class')}: {error.get('desc')}", body)
        elif "return" in body:
            self._timeline.record(Lane.QMP, f"<- {_short(body['return'])}", body)
        elif "QMP" in body:
            self._timeline.record(Lane.QMP, "<- greeting", body)
        return super()._cb_inbound(msg)

    def _cb_outbound(self, msg: Message) -> Message:
        if "execute" in msg:
            arguments = _short(msg["arguments"]) if "arguments" in msg else ""
            self._timeline.record(Lane.QMP, f"-> {msg['execute']} {arguments}".rstrip(), dict(msg))
            if msg["execute"] == SAVE_DEVICES:
                self._saving = msg.get("id")
        return super()._cb_outbound(msg)

    def _is_qemus_own_stop(self, body: dict[str, Any]) -> bool:
        """Take the STOP and RESUME of the command that saves the devices' state, which come before its reply, out of the events.

        They belong together and to the command: nobody stopped the machine. A STOP without a RESUME was somebody else's, just before.
        """
        held = self._held
        if body.get("event") == "STOP":
            self._held = body
            return True
        if body.get("event") == "RESUME" and held is not None:
            self._held = None
            for event in (held, body):
                self._timeline.record(Lane.QMP, f"{event['event']} (to save the devices' state)", event)
            return True
        if body.get("id") == self._saving:
            self._saving = self._held = None
            if held is not None:
                self._timeline.record(Lane.EVENT, event_text(held), held)
        return False


class Qmp:
    """One monitor connection. Every command, reply and event is on the timeline, in the order of the wire."""

    def __init__(self, client: _Client, loop: QmpLoop, timeline: Timeline, seconds: float) -> None:
        loop.adopt(client)
        self._client = client
        self._loop = loop
        self._timeline = timeline
        self._seconds = seconds

    @classmethod
    def connect(cls, sock: socket.socket, loop: QmpLoop, timeline: Timeline, deadline: Deadline, *, seconds: float) -> Qmp:
        """Negotiate on a connected socket, which the monitor owns from then on.

        :param deadline: for the greeting. :param seconds: the budget of each command later.
        :raises MachineDied: QEMU ended before it greeted. :raises DeadlineExpired: it did not greet.
        """
        monitor = cls(_Client(timeline), loop, timeline, seconds)
        try:
            loop.run(monitor._client.join(sock), deadline)
        except TimeoutError as error:
            raise DeadlineExpired("QEMU's monitor to greet", deadline.seconds) from error
        except (QMPError, OSError, EOFError) as error:
            raise monitor._broken("its greeting", error) from None
        return monitor

    def execute(self, command: str, arguments: Mapping[str, Any] | None = None, *, seconds: float | None = None) -> Any:
        """Run a QMP command and return what it returns.

        :raises QmpRefused: QEMU answered with an error. :raises MachineDied: QEMU ended, before or meanwhile.
        :raises DeadlineExpired: no answer in time, although QEMU lives.
        """
        __tracebackhide__ = True
        if self._timeline.ended is not None:
            raise self._timeline.ended.with_traceback(None)
        deadline = Deadline(self._seconds if seconds is None else seconds)
        try:
            return self._loop.run(self._client.execute(command, dict(arguments) if arguments else None), deadline)
        except ExecuteError as error:
            raise QmpRefused(command, error.error_class, str(error)) from error
        except TimeoutError as error:
            raise DeadlineExpired(f"QEMU's answer to {command}", deadline.seconds, self._state()) from error
        except (ExecInterruptedError, QMPError, OSError, EOFError) as error:
            raise self._broken(command, error) from None

    def hmp(self, line: str) -> str:
        """Run a line of the human monitor and return what it prints."""
        return str(self.execute("human-monitor-command", {"command-line": line}))

    def give(self, descriptor: int, name: str) -> None:
        """Give QEMU a copy of a file descriptor, which commands refer to by ``name`` from then on (``getfd``).

        :raises QmpRefused: QEMU did not take it. :raises MachineDied: QEMU ended, before or meanwhile.
        """
        self._send(descriptor)
        self.execute("getfd", {"fdname": name})

    @contextlib.contextmanager
    def lent(self, descriptor: int) -> Iterator[str]:
        """Let QEMU have a copy of a file descriptor for the ``with`` block: the path by which commands open it (``add-fd``).

        :raises QmpRefused: QEMU did not take it. :raises MachineDied: QEMU ended, before or meanwhile.
        """
        self._send(descriptor)
        number = self.execute("add-fd")["fdset-id"]
        try:
            yield f"/dev/fdset/{number}"
        finally:
            if self._timeline.ended is None:
                self.execute("remove-fd", {"fdset-id": number})

    def _send(self, descriptor: int) -> None:
        """Send a descriptor, which travels beside the next command."""

        async def send() -> None:
            self._client.send_fd_scm(descriptor)

        if self._timeline.ended is not None:
            raise self._timeline.ended.with_traceback(None)
        try:
            self._loop.run(send(), Deadline(self._seconds))
        except (QMPError, OSError, EOFError) as error:
            raise self._broken("the sending of a descriptor", error) from None

    @property
    def dead(self) -> bool:
        """Whether it is known that QEMU has ended."""
        return self._timeline.ended is not None

    def swap(self, other: Qmp) -> None:
        """Take the other one's connection, and give it this one's: whoever has this monitor speaks to another QEMU then."""
        self._client, other._client = other._client, self._client

    def close(self) -> None:
        """Drop the connection."""
        # What a broken connection has to say was said to whoever used it last. qemu.qmp raises its reader's error, of any kind: bytes
        # that are no UTF-8, a line over its limit, brackets without an end.
        with contextlib.suppress(QMPError, OSError, EOFError, TimeoutError, ValueError, RecursionError):
            self._loop.run(self._client.disconnect(), Deadline(self._seconds))

    def _state(self) -> str:
        """Return what is known of a QEMU that does not answer."""
        if self._timeline.ended is not None:
            return "QEMU ended meanwhile"
        last = self._timeline.since(0, Lane.QMP, Lane.EVENT)[-1]
        return f"QEMU lives, and its monitor is silent since `{last.text}`"

    def _broken(self, during: str, error: BaseException) -> MachineError:
        """Return the error to raise when the monitor broke off; QEMU's death, if it comes, is the better one."""
        __tracebackhide__ = True
        deadline = Deadline(_DEATH_NOTICE)
        with contextlib.suppress(DeadlineExpired):
            try:
                self._timeline.wait(lambda _: None, since=self._timeline.mark(), deadline=deadline, what="news of QEMU's end")
            except MachineDied as died:
                return died
        return MachineError(f"QEMU's monitor broke off during {during} although QEMU lives: {error or type(error).__name__}")


def event_text(event: Mapping[str, Any]) -> str:
    """Return an event for people: ``DEVICE_DELETED device=core1 path=/machine/peripheral/core1``."""
    data = event.get("data", {})
    told = [f"{key}={value}" for key, value in data.items()] if isinstance(data, Mapping) else [str(data)]
    return " ".join([str(event["event"]), *told])


def _short(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= _SHORT else f"{text[:_SHORT]}... ({len(text)} characters)"
