"""A 16550A behind PCI, which Linux's 8250_pci binds (QEMU's ``pci-serial``, 1b36:0002): ports, INTx and a byte for each write."""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum
from typing import Final

from pytest_spapr.vfio.model import Model

_PORTS: Final = 0
_SCRATCH: Final = 1
_SCRATCH_SIZE: Final = 0x1000
_DIVISOR_LATCH: Final = 0x80
_LOOP: Final = 0x10
_RECEIVED: Final = 0x01
_EMPTY: Final = 0x60
_ENABLE_RECEIVED: Final = 0x01
_ENABLE_EMPTY: Final = 0x02
_CONNECTED: Final = 0xB0  # carrier, data set ready, clear to send
_FIFOS: Final = 0xC0
_FIFO_BYTES: Final = 16


class _Register(IntEnum):
    DATA = 0
    ENABLE = 1
    IDENTIFY = 2
    LINE = 3
    MODEM = 4
    LINE_STATUS = 5
    MODEM_STATUS = 6
    SPARE = 7


class Serial(Model):
    """A serial port that keeps all that the guest sends.

    :ivar sent: every byte that the guest has sent, in order. :ivar on_byte: called with each, in the server's thread.
    """

    def __init__(self) -> None:
        super().__init__((0x1B36, 0x0002), 0x070002, {_PORTS: (8, True), _SCRATCH: (_SCRATCH_SIZE, False)})
        self.sent = bytearray()
        self.on_byte: Callable[[int], None] | None = None
        self._scratch = bytearray(_SCRATCH_SIZE)
        self.reset()

    def reset(self) -> None:
        self._registers = bytearray(8)
        self._divisor = bytearray((12, 0))
        self._incoming = bytearray()
        self._empty_told = False
        self._fifo = False

    def receive(self, data: bytes) -> None:
        """Let bytes arrive for the guest to read."""
        self._incoming += data
        self._signal()

    def read(self, region: int, offset: int, count: int) -> bytes:
        if region == _SCRATCH:
            return bytes(self._scratch[offset : offset + count])
        found = bytes(self._read(offset + index) for index in range(count))
        self._signal()
        return found

    def write(self, region: int, offset: int, data: bytes) -> None:
        if region == _SCRATCH:
            self._scratch[offset : offset + len(data)] = data
            return
        for index, byte in enumerate(data):
            self._write(offset + index, byte)
        self._signal()

    def _read(self, register: int) -> int:
        if register in (_Register.DATA, _Register.ENABLE) and self._registers[_Register.LINE] & _DIVISOR_LATCH:
            return self._divisor[register]
        match register:
            case _Register.DATA:
                return self._incoming.pop(0) if self._incoming else 0
            case _Register.IDENTIFY:
                cause = self._cause()
                # Reading that the transmitter is empty ends its interrupt.
                self._empty_told = self._empty_told or cause == 0x02
                return cause | (_FIFOS if self._fifo else 0)
            case _Register.LINE_STATUS:
                return _EMPTY | (_RECEIVED if self._incoming else 0)
            case _Register.MODEM_STATUS:
                return self._modem_status()
        return self._registers[register]

    def _write(self, register: int, byte: int) -> None:
        if register in (_Register.DATA, _Register.ENABLE) and self._registers[_Register.LINE] & _DIVISOR_LATCH:
            self._divisor[register] = byte
            return
        match register:
            case _Register.DATA:
                self._transmit(byte)
            case _Register.ENABLE:
                self._registers[_Register.ENABLE] = byte & 0x0F
                self._empty_told = False
            case _Register.IDENTIFY:
                self._fifo = bool(byte & 0x01)
                if byte & 0x02:
                    self._incoming.clear()
            case _Register.LINE | _Register.MODEM | _Register.SPARE:
                self._registers[register] = byte

    def _transmit(self, byte: int) -> None:
        self._empty_told = False
        if self._registers[_Register.MODEM] & _LOOP:
            self._incoming = (self._incoming + bytes((byte,)))[-_FIFO_BYTES:]
            return
        self.sent.append(byte)
        if self.on_byte is not None:
            self.on_byte(byte)

    def _modem_status(self) -> int:
        if not self._registers[_Register.MODEM] & _LOOP:
            return _CONNECTED
        # Outputs come back as inputs: DTR as DSR, RTS as CTS, OUT1 as RI, OUT2 as DCD.
        wires = ((0x02, 0x10), (0x01, 0x20), (0x04, 0x40), (0x08, 0x80))
        return sum(seen for set_, seen in wires if self._registers[_Register.MODEM] & set_)

    def _cause(self) -> int:
        """Return what the interrupt identification register says: the most urgent cause, or 1 for none."""
        enabled = self._registers[_Register.ENABLE]
        if enabled & _ENABLE_RECEIVED and self._incoming:
            return 0x04
        return 0x02 if enabled & _ENABLE_EMPTY and not self._empty_told else 0x01

    def _signal(self) -> None:
        self.port.level(high=self._cause() != 0x01)
