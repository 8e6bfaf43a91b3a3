"""The vfio-user server: what it answers a client of the test's own, what it does with nonsense, and that nothing stays behind."""

from __future__ import annotations

import array
import errno
import json
import os
import select
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pytest_spapr.errors import MachineError
from pytest_spapr.timeline import Lane, Timeline
from pytest_spapr.vfio import peer as peer_module
from pytest_spapr.vfio import protocol
from pytest_spapr.vfio.dma import DmaError, DmaMap
from pytest_spapr.vfio.fault import ACCESSES, Fault, Wrong
from pytest_spapr.vfio.function import Function
from pytest_spapr.vfio.model import Idle, Model
from pytest_spapr.vfio.nvme import Nvme
from pytest_spapr.vfio.peer import Peer
from pytest_spapr.vfio.protocol import CONFIG, HEADER, Command, Flag, Irq, Malformed, Message, SetIrq
from pytest_spapr.vfio.serial import Serial

_SECONDS = 5.0


@pytest.mark.parametrize(("model", "pins"), [(Serial, [1, 2, 3, 4, 1]), (Nvme, [0, 0, 0, 0, 0])])
def test_each_function_of_a_slot_has_an_intx_pin_of_its_own_if_it_has_intx(model: Callable[[], Model], pins: list[int]) -> None:
    found = []
    for function in range(5):
        made = model()
        made.take_pin(function)
        found.append(made.config_read(0x3D, 1)[0])
    assert found == pins


class Client:
    """The other end of a connection."""

    def __init__(self, address: str) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(_SECONDS)
        try:
            self.socket.connect(address)
        except OSError:
            self.socket.close()
            raise

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(
        self, command: int, body: bytes = b"", descriptors: tuple[int, ...] = (), *, flags: int = 0, number: int = 7
    ) -> None:
        message = HEADER.pack(number, command, HEADER.size + len(body), flags, 0) + body
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))] if descriptors else []
        self.socket.sendmsg([message], rights)

    def receive(self) -> Message:
        number, command, size, flags, error = HEADER.unpack(self.read(HEADER.size))
        return Message(number, command, flags, error, self.read(size - HEADER.size))

    def ask(self, command: int, body: bytes = b"", descriptors: tuple[int, ...] = ()) -> Message:
        self.send(command, body, descriptors)
        return self.receive()

    def read(self, count: int) -> bytes:
        data = b""
        while len(data) < count:
            got = self.socket.recv(count - len(data))
            if not got:
                raise EOFError
            data += got
        return data

    def read_bar(self, bar: int, offset: int, count: int) -> bytes:
        reply = self.ask(Command.REGION_READ, protocol.ACCESS.pack(offset, bar, count))
        assert not reply.flags & Flag.ERROR
        return reply.body[protocol.ACCESS.size :]

    def write_bar(self, bar: int, offset: int, data: bytes) -> None:
        reply = self.ask(Command.REGION_WRITE, protocol.ACCESS.pack(offset, bar, len(data)) + data)
        assert not reply.flags & Flag.ERROR

    def listen(self, irq: Irq) -> int:
        descriptor = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        body = protocol.IRQ_SET.pack(20, SetIrq.EVENTFD | SetIrq.TRIGGER, irq, 0, 1)
        assert not self.ask(Command.SET_IRQS, body, (descriptor,)).flags & Flag.ERROR
        return descriptor


@contextmanager
def served(model: Model, **more: Any) -> Iterator[tuple[Peer, Client]]:
    peer = Peer("unit", model, Timeline(), **more)
    try:
        with Client(peer.address) as client:
            yield peer, client
    finally:
        peer.close()


def require_served(peer: Peer) -> None:
    """Have the server serve the next client."""
    with Client(peer.address) as client:
        assert client.read_bar(CONFIG, 0, 2) == b"\x36\x1b"


def descriptors() -> set[str]:
    return {entry.name for entry in Path("/proc/self/fd").iterdir()}


def rung(descriptor: int) -> bool:
    with suppress(BlockingIOError):
        return os.eventfd_read(descriptor) > 0
    return False


class TestProtocol:
    def test_a_client_is_told_what_it_deals_with(self) -> None:
        with served(Serial()) as (_, client):
            version = client.ask(Command.VERSION, protocol.VERSION.pack(0, 0) + b'{"capabilities": {}}\0')
            assert version.flags == Flag.REPLY
            assert json.loads(version.body[protocol.VERSION.size :].rstrip(b"\0"))["capabilities"]["max_msg_fds"] == 8
            info = client.ask(Command.GET_INFO, protocol.DEVICE_INFO.pack(16, 0, 0, 0)).unpack(protocol.DEVICE_INFO)
            assert info == (16, 3, 9, 5)
            region = client.ask(Command.GET_REGION_INFO, protocol.REGION_INFO.pack(32, 0, 0, 0, 0, 0)).unpack(
                protocol.REGION_INFO
            )
            assert region[4] == 8
            irq = client.ask(Command.GET_IRQ_INFO, protocol.IRQ_INFO.pack(16, 0, Irq.ERROR, 0)).unpack(protocol.IRQ_INFO)
            assert irq[3] == 1
            assert client.read_bar(CONFIG, 0, 4) == struct.pack("<HH", 0x1B36, 0x0002)

    @pytest.mark.parametrize(
        ("command", "body"),
        [
            (Command.VERSION, protocol.VERSION.pack(1, 0)),
            (Command.VERSION, protocol.VERSION.pack(0, 0) + b"{"),
            (Command.VERSION, protocol.VERSION.pack(0, 0) + b"[" * 100_000),
            (Command.GET_INFO, b""),
            (Command.GET_REGION_INFO, protocol.REGION_INFO.pack(32, 0, 9, 0, 0, 0)),
            (Command.GET_IRQ_INFO, protocol.IRQ_INFO.pack(16, 0, 5, 0)),
            (Command.SET_IRQS, protocol.IRQ_SET.pack(20, 0x24, Irq.ERROR, 0, 2)),
            (Command.SET_IRQS, protocol.IRQ_SET.pack(20, 0x3F, Irq.INTX, 0, 1)),
            (Command.REGION_READ, protocol.ACCESS.pack(0, 0, 9)),
            (Command.REGION_READ, protocol.ACCESS.pack((1 << 64) - 1, 0, 1)),
            (Command.REGION_READ, protocol.ACCESS.pack(0, 3, 1)),
            (Command.REGION_WRITE, protocol.ACCESS.pack(0, 0, 2) + b"x"),
            (Command.DMA_MAP, protocol.DMA_MAP.pack(32, 0, 0, 0, 4096)),
            (Command.DMA_MAP, protocol.DMA_MAP.pack(32, 3, 0, (1 << 64) - 1, 4096)),
            (Command.DMA_READ, b""),
            (99, b""),
        ],
    )
    def test_what_makes_no_sense_is_answered_with_an_error(self, command: int, body: bytes) -> None:
        with served(Serial()) as (_, client):
            assert client.ask(command, body).flags & Flag.ERROR
            assert client.read_bar(CONFIG, 0, 2) == b"\x36\x1b"

    @pytest.mark.parametrize("size", [0, 15, protocol.MAX_MESSAGE + 1, 0xFFFFFFFF])
    def test_a_size_that_no_message_has_ends_the_connection(self, size: int) -> None:
        with served(Serial()) as (peer, client):
            client.socket.sendall(HEADER.pack(1, 1, size, 0, 0))
            with pytest.raises(EOFError):
                client.receive()
            require_served(peer)

    def test_half_a_message_keeps_nobody_waiting(self) -> None:
        with served(Serial()) as (peer, client):
            client.read_bar(CONFIG, 0, 1)
            client.socket.sendall(HEADER.pack(1, Command.REGION_READ, 32, 0, 0) + b"123")
            assert peer.connected

    def test_a_client_that_does_not_read_is_hung_up_on(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("pytest_spapr.vfio.stream._SEND_SECONDS", 0.05)
        with served(Idle()) as (peer, client):
            body = protocol.ACCESS.pack(0, 1, 4096)
            with pytest.raises(OSError, match=r"Broken pipe|reset"):
                for _ in range(10_000):
                    client.send(Command.REGION_READ, body)
            require_served(peer)

    def test_a_second_client_is_refused(self) -> None:
        with served(Serial()) as (peer, client):
            client.read_bar(CONFIG, 0, 2)
            with pytest.raises(ConnectionRefusedError):
                Client(peer.address)


@st.composite
def messages(draw: st.DrawFn) -> bytes:
    """Messages of all kinds: near the truth, as hardly any random bytes are, cut short, or with bytes after them."""
    command = draw(st.sampled_from([*Command, 0, 14, 15, 0xFFFF]))
    number = st.one_of(st.sampled_from([0, 1, 7, 8, 4096, 0xFFFFFFFF]), st.integers(0, 0xFFFFFFFF))
    words = draw(st.lists(number, max_size=9))
    body = struct.pack(f"<{len(words)}I", *words) + draw(st.binary(max_size=20))
    size = draw(st.one_of(st.just(HEADER.size + len(body)), st.integers(0, 64)))
    return (
        HEADER.pack(draw(st.integers(0, 0xFFFF)), command, size, draw(st.sampled_from([0, 0, 0, 1, 0x10, 0x20, 0xF])), 0) + body
    )


class TestNonsense:
    @settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    @given(
        sent=st.lists(st.one_of(messages(), st.binary(max_size=200)), max_size=12), model=st.sampled_from([Serial, Nvme, Idle])
    )
    def test_no_client_can_break_a_server(self, sent: list[bytes], model: Callable[[], Model]) -> None:
        """Whatever comes, it serves the next client, and its thread ends when it is told to."""
        peer = Peer("fuzz", model(), Timeline())
        try:
            with Client(peer.address) as client, suppress(OSError):
                for data in sent:
                    client.socket.sendall(data)
            self.await_place(peer)
            require_served(peer)
        finally:
            peer.close()

    @settings(max_examples=60, deadline=None)
    @given(sent=st.lists(st.tuples(messages(), st.integers(0, 10)), max_size=8))
    def test_no_file_descriptor_is_kept(self, sent: list[tuple[bytes, int]]) -> None:
        """Whatever comes beside which message."""
        before = descriptors()
        peer = Peer("fuzz", Nvme(), Timeline())
        try:
            with Client(peer.address) as client, Path("/dev/null").open("r+b") as file, suppress(OSError):
                for data, number in sent:
                    passed = array.array("i", [file.fileno()] * number)
                    client.socket.sendmsg([data], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, passed)] if passed else [])
        finally:
            peer.close()
        assert descriptors() == before

    @settings(max_examples=200, deadline=None)
    @given(command=st.sampled_from(list(Command)), body=st.binary(max_size=80))
    def test_every_message_has_an_answer(self, command: Command, body: bytes) -> None:
        """A reply of the same number, an error or not: never an exception."""
        function = Function(Nvme(), descriptors=True)
        function.model.port = _Deaf()
        reply = HEADER.unpack_from(function.answer(Message(7, command, 0, 0, body)))
        assert reply[:2] == (7, command)
        assert reply[3] & Flag.REPLY

    @staticmethod
    def await_place(peer: Peer) -> None:
        """Wait until the server has dealt with the client that left."""
        peer.journal._timeline.wait(
            lambda record: True if "DISCONNECT" in record.text else None,
            since=0,
            deadline=_deadline(),
            what="the server to be free",
        )


def _deadline() -> Any:
    from pytest_spapr.deadline import Deadline

    return Deadline(_SECONDS)


class _Deaf:
    """A guest without memory or interrupts."""

    def interrupt(self, index: Irq, vector: int = 0) -> None: ...

    def level(self, *, high: bool) -> None: ...

    def read(self, address: int, count: int) -> bytes:
        raise DmaError("there is none")

    def write(self, address: int, data: bytes) -> None:
        raise DmaError("there is none")


class TestInterrupts:
    def test_a_level_is_signalled_once_until_it_was_served(self) -> None:
        serial = Serial()
        with served(serial) as (_, client):
            intx = client.listen(Irq.INTX)
            client.write_bar(0, 1, b"\x02")
            assert rung(intx)
            client.write_bar(0, 0, b"x")
            assert not rung(intx)
            client.ask(Command.SET_IRQS, protocol.IRQ_SET.pack(20, SetIrq.NONE | SetIrq.UNMASK, Irq.INTX, 0, 1))
            assert rung(intx)
            assert client.read_bar(0, 2, 1) == b"\x02"
            client.ask(Command.SET_IRQS, protocol.IRQ_SET.pack(20, SetIrq.NONE | SetIrq.UNMASK, Irq.INTX, 0, 1))
            assert not rung(intx)
            assert serial.sent == b"x"

    def test_an_error_needs_a_listener(self) -> None:
        with served(Serial()) as (peer, client):
            client.read_bar(CONFIG, 0, 1)
            with pytest.raises(MachineError, match="nobody listens"):
                peer.interrupt(Irq.ERROR)
            error = client.listen(Irq.ERROR)
            peer.interrupt(Irq.ERROR)
            assert rung(error)

    def test_a_descriptor_that_would_block_is_left_alone(self) -> None:
        with served(Serial()) as (peer, client):
            reader, writer = os.pipe()
            os.set_blocking(writer, False)
            with suppress(BlockingIOError):
                while True:
                    os.write(writer, bytes(65536))
            os.set_blocking(writer, True)
            client.ask(Command.SET_IRQS, protocol.IRQ_SET.pack(20, 0x24, Irq.ERROR, 0, 1), (writer,))
            with pytest.raises(MachineError):
                peer.interrupt(Irq.ERROR)
            os.close(reader)
            os.close(writer)


class TestFaults:
    @pytest.mark.parametrize("wrong", [Wrong.ONES, Wrong.REFUSED])
    def test_an_answer_is_wrong_until_the_fault_is_taken_back(self, wrong: Wrong) -> None:
        with served(Serial()) as (peer, client):
            fault = Fault(wrong, ACCESSES, errno=errno.EIO)
            peer.set_fault(fault)
            client.send(Command.REGION_READ, protocol.ACCESS.pack(0, CONFIG, 4))
            if wrong is Wrong.ONES:
                assert client.receive().body[protocol.ACCESS.size :] == b"\xff" * 4
            else:
                assert client.receive().errno == errno.EIO
            peer.take_back(fault)
            assert fault.hits == 1
            assert client.read_bar(CONFIG, 0, 2) == b"\x36\x1b"

    def test_what_is_held_is_answered_when_it_is_released(self) -> None:
        with served(Serial()) as (peer, client):
            fault = Fault(Wrong.HELD, ACCESSES)
            peer.set_fault(fault)
            client.send(Command.REGION_READ, protocol.ACCESS.pack(0, CONFIG, 2))
            assert not select.select([client.socket], [], [], 0.1)[0]
            peer.take_back(fault)
            assert client.receive().body[protocol.ACCESS.size :] == b"\x36\x1b"

    def test_what_is_held_too_long_is_never_answered(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A late answer would have QEMU lose its place in the stream."""
        monkeypatch.setattr(peer_module, "PATIENCE", 0.1)
        with served(Serial()) as (peer, client):
            peer.set_fault(Fault(Wrong.HELD, ACCESSES))
            client.send(Command.REGION_READ, protocol.ACCESS.pack(0, CONFIG, 2))
            with pytest.raises(EOFError):
                client.receive()

    def test_a_slow_answer_comes_in_its_time(self) -> None:
        with served(Serial()) as (peer, client):
            peer.set_fault(Fault(Wrong.SLOW, ACCESSES, seconds=0.15))
            client.send(Command.REGION_READ, protocol.ACCESS.pack(0, CONFIG, 2))
            assert not select.select([client.socket], [], [], 0.05)[0]
            assert client.receive().body[protocol.ACCESS.size :] == b"\x36\x1b"

    def test_what_is_never_answered_is_not_done(self) -> None:
        serial = Serial()
        with served(serial) as (peer, client):
            fault = Fault(Wrong.UNANSWERED, ACCESSES)
            peer.set_fault(fault)
            client.send(Command.REGION_WRITE, protocol.ACCESS.pack(0, 0, 1) + b"x")
            assert client.ask(Command.RESET).flags == Flag.REPLY
            assert serial.sent == b""
            peer.take_back(fault)
            client.write_bar(0, 0, b"y")
            assert serial.sent == b"y"

    def test_who_vanishes_at_its_work_leaves_a_message_unread(self) -> None:
        with served(Serial()) as (peer, client):
            client.read_bar(CONFIG, 0, 1)
            later = threading.Timer(0.1, client.send, (Command.RESET, b""))
            later.start()
            peer.vanish(busy=True)
            later.join()
            with pytest.raises(ConnectionResetError):
                client.receive()
            assert "RESET" not in [str((record.data or {}).get("command")) for record in peer.journal.since(0)]

    def test_nobody_vanishes_at_its_work_without_any(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("pytest_spapr.vfio.peer._BUSY_SECONDS", 0.01)
        with served(Serial()) as (peer, client):
            with pytest.raises(MachineError, match="none came"):
                peer.vanish(busy=True)
            client.read_bar(CONFIG, 0, 1)

    def test_who_vanished_can_be_found_where_it_was(self) -> None:
        with served(Serial()) as (peer, client):
            client.read_bar(CONFIG, 0, 1)
            peer.vanish()
            with pytest.raises(EOFError):
                client.receive()
            with pytest.raises(ConnectionRefusedError):
                Client(peer.address)
            peer.come_back()
            require_served(peer)
            with pytest.raises(MachineError, match="not vanished"):
                peer.come_back()


class TestDma:
    @pytest.fixture
    def file(self, tmp_path: Path) -> Iterator[int]:
        (tmp_path / "memory").write_bytes(bytes(range(256)) * 64)
        descriptor = os.open(tmp_path / "memory", os.O_RDWR)
        yield descriptor
        os.close(descriptor)

    def test_pieces_that_touch_are_one(self, file: int) -> None:
        dma = DmaMap()
        dma.add(0x1000, 0x1000, 0x2000, 3, os.dup(file))
        dma.add(0x2000, 0x1000, 0x0, 3, os.dup(file))
        assert dma.read(0x1FFE, 4) == b"\xfe\xff\x00\x01"
        assert dma.write(0x1FFF, b"ab")
        assert os.pread(file, 1, 0x2FFF) + os.pread(file, 1, 0) == b"ab"
        assert dma.remove(0x1000, 0x2000) == 2
        with pytest.raises(DmaError):
            dma.read(0x1000, 1)
        dma.clear()

    def test_what_is_mapped_is_not_mapped_again(self, file: int) -> None:
        dma = DmaMap()
        dma.add(0x1000, 0x1000, 0, 3, None)
        for address, size in ((0x1000, 0x1000), (0, 0x1001), (0x1FFF, 1), (0x800, 0x4000)):
            with pytest.raises(Malformed) as caught:
                dma.add(address, size, 0, 3, os.dup(file))
            assert caught.value.errno == errno.EEXIST
        assert dma.read(0x1000, 1) is None
        assert len(dma) == 1

    @pytest.mark.parametrize(("flags", "reads", "writes"), [(1, True, False), (2, False, True)])
    def test_who_may_read_may_not_write(self, file: int, flags: int, *, reads: bool, writes: bool) -> None:
        dma = DmaMap()
        dma.add(0, 0x1000, 0, flags, os.dup(file))
        for allowed, act in ((reads, lambda: dma.read(0, 1)), (writes, lambda: dma.write(0, b"x"))):
            if allowed:
                assert act()
            else:
                with pytest.raises(DmaError):
                    act()
        dma.clear()

    def test_a_file_that_is_no_memory_is_left_alone(self, file: int) -> None:
        """A clone's private memory has its template's file behind it."""
        before = os.pread(file, 4096, 0)
        with served(Nvme(), descriptors=False) as (peer, client):
            client.ask(Command.DMA_MAP, protocol.DMA_MAP.pack(32, 3, 0, 0, 0x4000), (file,))
            assert peer.mapped == 1
            assert peer._function.dma.read(0, 4) is None
        assert os.pread(file, 4096, 0) == before


class TestEnd:
    def test_nothing_stays_behind(self) -> None:
        before = descriptors()
        with served(Serial()) as (peer, client):
            client.read_bar(CONFIG, 0, 1)
            assert Path(peer.address).exists()
        assert descriptors() == before
        assert not [thread for thread in threading.enumerate() if thread.name == "spapr-vfio-unit"]
        peer.close()
        with pytest.raises(MachineError, match="has ended"):
            peer.vanish()

    def test_what_it_holds_is_answered_when_it_ends(self) -> None:
        with served(Serial()) as (peer, client):
            peer.set_fault(Fault(Wrong.HELD, ACCESSES))
            client.send(Command.REGION_READ, protocol.ACCESS.pack(0, CONFIG, 2))
            assert not select.select([client.socket], [], [], 0.1)[0]
            peer.close()
            assert client.receive().body[protocol.ACCESS.size :] == b"\x36\x1b"
            with pytest.raises(EOFError):
                client.receive()

    def test_every_message_is_on_the_timeline_in_order(self) -> None:
        with served(Serial()) as (peer, client):
            for address in range(3):
                client.ask(Command.DMA_MAP, protocol.DMA_MAP.pack(32, 3, 0, address << 12, 4096))
            client.write_bar(0, 0, b"A")
            client.ask(Command.RESET)
            texts = [record.text for record in peer.journal._timeline.since(0, Lane.VFIO)]
        assert texts == ["unit: CONNECT", "unit: DMA_MAP count=3", "unit: REGION_WRITE at=bar0+0x0 bytes=41", "unit: RESET"]
