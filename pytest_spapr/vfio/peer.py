"""The server of one function: a thread with a socket that a QEMU connects to, a device model, and faults.

A thread of the test's process, not a process beside it: it shares the timeline and dies with the test, and a test changes its mind
without a protocol of their own. It needs the interpreter for 0.1 ms for each message, and QEMU waits 5 s for an answer (x-msg-timeout).

QEMU loses its place in the stream if an answer comes after that. So a server never answers late: it closes the connection instead.
"""

from __future__ import annotations

import os
import queue
import select
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from itertools import count
from typing import Any, Final, TypeVar

from pytest_spapr.errors import MachineError
from pytest_spapr.timeline import Timeline
from pytest_spapr.vfio import protocol
from pytest_spapr.vfio.dma import DmaError
from pytest_spapr.vfio.fault import Fault, Wrong
from pytest_spapr.vfio.function import Function
from pytest_spapr.vfio.journal import Journal
from pytest_spapr.vfio.model import Model
from pytest_spapr.vfio.protocol import Command, Irq, Message
from pytest_spapr.vfio.stream import Closed, Stream, close_all, listen

T = TypeVar("T")

#: Seconds after a message has come in which it is answered, or never. QEMU's own limit is 5 s.
PATIENCE: Final = 4.0
_CONTROL_SECONDS: Final = 10.0
_BUSY_SECONDS: Final = 5.0
# Messages at once, before the test's wishes are looked at.
_BATCH: Final = 64


@dataclass(slots=True)
class _Waiting:
    """An answer that has not been given. :ivar due: when it is to be; None: when the test says so. :ivar until: when it is too late."""

    message: Message
    answer: bytes
    due: float | None
    until: float
    fault: Fault


class Peer:
    """Serves one function from its making until :meth:`close`. All of it happens in its own thread, one thing after another.

    :param name: for the timeline. :param descriptors: see :class:`Function`.
    :ivar address: the path that a client connects to. It leads to a socket that has no name in any directory: nothing stays behind.
    :ivar model: the device.
    """

    def __init__(self, name: str, model: Model, timeline: Timeline, *, descriptors: bool = True) -> None:
        self.name = name
        self.model = model
        self.journal = Journal(name, timeline)
        self._function = Function(model, descriptors=descriptors)
        model.port = _Port(self)
        self._stream: Stream | None = None
        self._faults: list[Fault] = []
        self._waiting: list[_Waiting] = []
        self._numbers = count(1)
        self._answers: dict[int, Message | None] = {}
        self._work_wanted = self._working = False
        self._wishes: queue.SimpleQueue[tuple[Callable[[], Any], Future[Any]]] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._ending = self._closed = False
        self._present = True
        self._listener, self._place = listen()
        self.address = f"/proc/{os.getpid()}/fd/{self._place}"
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._thread = threading.Thread(target=self._serve, name=f"spapr-vfio-{name}", daemon=True)
        self._thread.start()

    @property
    def connected(self) -> bool:
        """Whether a client is there."""
        return self._do(lambda: self._stream is not None)

    @property
    def mapped(self) -> int:
        """How many pieces of memory the client has mapped for DMA."""
        return self._do(lambda: len(self._function.dma))

    def close(self) -> None:
        """Answer what is held back, and end it, with its connection. Safe to call twice."""
        with self._lock:
            closed, self._closed, self._ending = self._closed, True, True
        if closed:
            return
        os.eventfd_write(self._wake, 1)
        self._thread.join(_CONTROL_SECONDS)
        if self._thread.is_alive():
            raise MachineError(f"the thread of the vfio-user server {self.name} does not end")
        os.close(self._wake)
        os.close(self._place)

    def interrupt(self, index: Irq) -> None:
        """Signal an interrupt. :raises MachineError: nobody listens to it."""

        def fire() -> bool:
            heard = self._function.interrupt(index)
            self.journal.note(f"interrupt {index.name}", heard=heard)
            return heard

        if not self._do(fire):
            raise MachineError(f"{self.name}: nobody listens to its {index.name} interrupt")

    def set_fault(self, fault: Fault) -> None:
        """Let messages from now on be befallen by a fault, the last one first."""

        def act() -> None:
            self._faults.append(fault)
            self.journal.note(f"fault: {fault.wrong}", commands=[command.name for command in sorted(fault.commands)])

        self._do(act)

    def take_back(self, fault: Fault) -> None:
        """End a fault; answer what it has held back, if it is not too late. A server that has ended holds back nothing."""

        def act() -> None:
            self._faults.remove(fault)
            self.journal.note(f"no fault any more: {fault.wrong}, {fault.hits} messages")
            for waiting in [one for one in self._waiting if one.fault is fault]:
                waiting.due = 0.0
            self._answer_what_is_due()

        if not self._ending:
            self._do(act)

    def vanish(self, *, busy: bool = False) -> None:
        """Break the connection and let nobody connect, as a server that was killed.

        :param busy: wait for a message first, and leave it unread.
        :raises MachineError: none has come in 5 s, or there is no client; all is as it was.
        """
        self._do(partial(self._vanish, busy))

    def come_back(self) -> None:
        """Let a client connect again, to the same address."""
        self._do(self._come_back)

    def _vanish(self, busy: bool) -> None:
        if busy and not (self._stream and self._stream.await_data(_BUSY_SECONDS)):
            raise MachineError(f"{self.name} was to vanish with a message unread, and none came in {_BUSY_SECONDS:.0f} s")
        self._present = False
        self._listener.close()
        self._disconnect("vanished")

    def _come_back(self) -> None:
        if self._present:
            raise MachineError(f"{self.name} has not vanished")
        self._present = True
        self._listen_again()
        self.journal.note("came back")

    def _listen_again(self) -> None:
        """Let clients in at the address that it has always had."""
        self._listener, place = listen()
        os.dup2(place, self._place, inheritable=False)
        os.close(place)

    def _do(self, act: Callable[[], T]) -> T:
        """Have the server's thread do something between two messages, and return what comes of it.

        :raises MachineError: it has ended.
        """
        future: Future[T] = Future()
        with self._lock:
            if self._ending:
                raise MachineError(f"the vfio-user server {self.name} has ended")
            self._wishes.put((act, future))
            os.eventfd_write(self._wake, 1)
        return future.result(_CONTROL_SECONDS)

    def _serve(self) -> None:
        """Be the server's thread."""
        try:
            while not self._ending:
                self._step(None)
        finally:
            with self._lock:
                self._ending = True
            self._listener.close()
            # QEMU does not notice that a connection has ended while it waits for an answer.
            for waiting in self._waiting:
                waiting.due = 0.0
            self._answer_what_is_due()
            self._disconnect("server closed")
            self._grant_wishes(MachineError(f"the vfio-user server {self.name} has ended"))

    def _step(self, until: float | None) -> None:
        """Wait for whatever comes next, not longer than ``until``, and deal with it."""
        poll = select.poll()
        poll.register(self._wake, select.POLLIN)
        if self._listener.fileno() >= 0:
            poll.register(self._listener, select.POLLIN)
        if self._stream is not None:
            poll.register(self._stream, select.POLLIN)
        moments = [moment for moment in (until, self.journal.due, *self._moments()) if moment is not None]
        # A millisecond more: poll rounds down, and would come back before the moment.
        seconds = max(0.0, min(moments) - time.monotonic()) + 0.001 if moments else None
        ready = {descriptor for descriptor, _ in poll.poll(None if seconds is None else seconds * 1000)}
        if self._wake in ready:
            os.eventfd_read(self._wake)
            self._grant_wishes(None)
        if self._listener.fileno() in ready:
            self._accept()
        if self._stream is not None and self._stream.fileno() in ready:
            self._receive(self._stream)
        self._answer_what_is_due()
        self.journal.flush_when_due()
        self._work()

    def _moments(self) -> Iterator[float]:
        for one in self._waiting:
            yield one.until if one.due is None else min(one.due, one.until)

    def _grant_wishes(self, refusal: MachineError | None) -> None:
        with suppress(queue.Empty):
            while True:
                act, future = self._wishes.get_nowait()
                try:
                    if refusal is not None:
                        raise refusal
                    future.set_result(act())
                except Exception as error:  # noqa: BLE001 - it belongs to whoever waits for it, in another thread
                    future.set_exception(error)

    def _accept(self) -> None:
        try:
            connected, _ = self._listener.accept()
        except (BlockingIOError, ConnectionError):
            return
        # One client at a time: a second one is refused by the kernel, for QEMU would wait 5 s for one that lets it in and sends it away.
        self._listener.close()
        self._stream = Stream(connected)
        self.journal.note("CONNECT")

    def _receive(self, stream: Stream) -> None:
        try:
            for _ in range(_BATCH):
                if (message := stream.receive()) is None:
                    return
                self._take(message)
                if self._stream is not stream:
                    return
        except Closed as error:
            self._disconnect(str(error))

    def _take(self, message: Message) -> None:
        """Deal with one message as the faults have it."""
        if message.is_reply:
            close_all(message.descriptors)
            if message.id in self._answers:
                self._answers[message.id] = message
            return
        fault = next((one for one in reversed(self._faults) if message.command in one.commands), None)
        if fault is not None:
            fault.hits += 1
        answer = self._answer(message, fault)
        self.journal.message(message, self._function, answer, fault)
        if answer is None or not message.wants_reply:
            return
        if fault is not None and fault.wrong in (Wrong.HELD, Wrong.SLOW):
            now = time.monotonic()
            due = now + fault.seconds if fault.wrong is Wrong.SLOW else None
            self._waiting.append(_Waiting(message, answer, due, now + PATIENCE, fault))
        else:
            self._send(answer)

    def _answer(self, message: Message, fault: Fault | None) -> bytes | None:
        """Return the answer, or None where there is to be none."""
        match fault.wrong if fault else None:
            case Wrong.UNANSWERED:
                close_all(message.descriptors)
                return None
            case Wrong.REFUSED if fault:
                close_all(message.descriptors)
                return message.error(fault.errno)
            case Wrong.ONES if message.command in (Command.REGION_READ, Command.REGION_WRITE):
                return self._ones(message)
        answer = self._function.answer(message)
        self._work_wanted = self._work_wanted or message.command == Command.REGION_WRITE
        return answer

    def _ones(self, message: Message) -> bytes:
        close_all(message.descriptors)
        try:
            region, offset, size = self._function.access(message)
        except protocol.Malformed as error:
            return message.error(error.errno)
        data = b"\xff" * size if message.command == Command.REGION_READ else b""
        return message.reply(protocol.ACCESS.pack(offset, region, size) + data)

    def _answer_what_is_due(self) -> None:
        now = time.monotonic()
        for one in [one for one in self._waiting if one.due is not None and one.due <= now < one.until]:
            self._waiting.remove(one)
            self._send(one.answer)
        if any(one.until <= now for one in self._waiting):
            self._disconnect(f"closed: {PATIENCE:g} s without an answer, and QEMU must not get a late one")

    def _send(self, data: bytes) -> None:
        try:
            if self._stream is not None:
                self._stream.send(data)
        except Closed as error:
            self._disconnect(str(error))

    def _disconnect(self, why: str) -> None:
        self._waiting.clear()
        if self._stream is not None:
            if self._present and not self._ending:
                # First: whoever finds the connection closed may connect again.
                self._listen_again()
            self._stream.close()
            self._stream = None
            self._function.disconnect()
            self.journal.note("DISCONNECT", why=why)
        self.journal.flush()

    def _work(self) -> None:
        """Let the device do what it was told, when whoever told it has been answered."""
        while self._work_wanted and not self._working:
            self._work_wanted, self._working = False, True
            try:
                self.model.work()
            finally:
                self._working = False

    def ask(self, command: Command, address: int, size: int, data: bytes = b"") -> bytes:
        """Read or write memory that the client has passed no file for. In the server's thread only.

        :raises DmaError: the client says no, or nothing.
        """
        until = time.monotonic() + PATIENCE
        with self._expected() as number:
            body = protocol.DMA_ACCESS.pack(address, size) + data
            self.journal.counted(command)
            self._send(protocol.request(number, command, body))
            while (reply := self._answers[number]) is None:
                if self._stream is None or self._ending or time.monotonic() >= until:
                    raise DmaError(f"nobody answered {command.name} at {address:#x}")
                self._step(until)
        if reply.flags & protocol.Flag.ERROR:
            raise DmaError(f"{command.name} at {address:#x}: {os.strerror(reply.errno)}")
        found = reply.body[protocol.DMA_ACCESS.size :][:size]
        if command is Command.DMA_READ and len(found) < size:
            raise DmaError(f"{command.name} at {address:#x}: {len(found)} of {size} bytes")
        return found

    @contextmanager
    def _expected(self) -> Iterator[int]:
        number = next(self._numbers) & 0xFFFF
        self._answers[number] = None
        try:
            yield number
        finally:
            del self._answers[number]


class _Port:
    """A device model's way to the guest."""

    def __init__(self, peer: Peer) -> None:
        self._peer = peer
        self._function = peer._function

    def interrupt(self, index: Irq, vector: int = 0) -> None:
        self._function.interrupt(index, vector)

    def level(self, *, high: bool) -> None:
        self._function.level(high=high)

    def read(self, address: int, count: int) -> bytes:
        with _told_as_dma_error():
            found = self._function.dma.read(address, count)
        return self._peer.ask(Command.DMA_READ, address, count) if found is None else found

    def write(self, address: int, data: bytes) -> None:
        with _told_as_dma_error():
            written = self._function.dma.write(address, data)
        if not written:
            self._peer.ask(Command.DMA_WRITE, address, len(data), data)


@contextmanager
def _told_as_dma_error() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DmaError(f"the client's memory: {error.strerror}") from error
