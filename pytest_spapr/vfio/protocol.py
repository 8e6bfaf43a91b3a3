"""The messages of the vfio-user protocol 0.0, as QEMU speaks it (docs/interop/vfio-user.rst, hw/vfio-user/protocol.h): layouts and numbers.

All numbers are little endian. A client's bytes are not to be trusted: whatever is not as it should be raises :class:`Malformed`.

No library does it: libvfio-user is C, and the Python of its tests is published by nobody; vfio_user (rust-vmm) is Rust. What is needed
here is a server that answers late, wrongly, or not at all.
"""

from __future__ import annotations

import errno
import json
import struct
from dataclasses import dataclass, field
from enum import IntEnum, IntFlag
from typing import Any, Final

HEADER: Final = struct.Struct("<HHIII")
VERSION: Final = struct.Struct("<HH")
DMA_MAP: Final = struct.Struct("<IIQQQ")
DMA_UNMAP: Final = struct.Struct("<IIQQ")
DEVICE_INFO: Final = struct.Struct("<IIII")
REGION_INFO: Final = struct.Struct("<IIIIQQ")
IRQ_INFO: Final = struct.Struct("<IIII")
IRQ_SET: Final = struct.Struct("<IIIII")
ACCESS: Final = struct.Struct("<QII")
# Address and count of DMA by message.
DMA_ACCESS: Final = struct.Struct("<QQ")

#: Bytes of data in one message, and of one message.
MAX_DATA: Final = 1 << 20
MAX_MESSAGE: Final = MAX_DATA + 4096
#: File descriptors that may come with one message.
MAX_DESCRIPTORS: Final = 8

# linux/vfio.h
DEVICE_FLAGS: Final = 0x1 | 0x2  # reset, PCI
READABLE: Final = 0x1
WRITABLE: Final = 0x2
UNMAP_ALL: Final = 0x2
IRQ_EVENTFD: Final = 0x1
IRQ_MASKABLE: Final = 0x2
IRQ_AUTOMASKED: Final = 0x4
IRQ_NORESIZE: Final = 0x8
REGIONS: Final = 9
CONFIG: Final = 7
BARS: Final = range(6)


class Command(IntEnum):
    """What a message asks for."""

    VERSION = 1
    DMA_MAP = 2
    DMA_UNMAP = 3
    GET_INFO = 4
    GET_REGION_INFO = 5
    GET_REGION_IO_FDS = 6
    GET_IRQ_INFO = 7
    SET_IRQS = 8
    REGION_READ = 9
    REGION_WRITE = 10
    DMA_READ = 11
    DMA_WRITE = 12
    RESET = 13


class Flag(IntFlag):
    """A message's flags."""

    REPLY = 0x1
    NO_REPLY = 0x10
    ERROR = 0x20


#: The bits of the flags that tell a command from a reply.
TYPE: Final = 0xF


class Irq(IntEnum):
    """The interrupts of a PCI function (VFIO_PCI_*_IRQ_INDEX)."""

    INTX = 0
    MSI = 1
    MSIX = 2
    ERROR = 3
    REQUEST = 4


class SetIrq(IntFlag):
    """What SET_IRQS brings, and what is to be done with it."""

    NONE = 0x1
    BOOL = 0x2
    EVENTFD = 0x4
    MASK = 0x8
    UNMASK = 0x10
    TRIGGER = 0x20


class Malformed(Exception):
    """A message that is not as the protocol has it. :ivar errno: what to answer it with."""

    def __init__(self, what: str, number: int = errno.EINVAL) -> None:
        super().__init__(what)
        self.errno = number


@dataclass(slots=True)
class Message:
    """A message as it came. :ivar descriptors: the file descriptors beside it; whoever takes one takes it out of here."""

    id: int
    command: int
    flags: int
    errno: int
    body: bytes
    descriptors: list[int] = field(default_factory=list)

    @property
    def is_reply(self) -> bool:
        return self.flags & TYPE == Flag.REPLY

    @property
    def wants_reply(self) -> bool:
        return not self.flags & Flag.NO_REPLY

    @property
    def name(self) -> str:
        """The command in words, also one that nobody knows."""
        return Command(self.command).name if self.command in _KNOWN else f"command {self.command}"

    def unpack(self, layout: struct.Struct) -> tuple[Any, ...]:
        """Return the numbers that the body begins with. :raises Malformed: it is too short."""
        if len(self.body) < layout.size:
            raise Malformed(f"{self.name} has {len(self.body)} bytes, expected {layout.size} at least")
        return layout.unpack_from(self.body)

    def reply(self, body: bytes = b"") -> bytes:
        """Return the answer that all went well."""
        return HEADER.pack(self.id, self.command, HEADER.size + len(body), Flag.REPLY, 0) + body

    def error(self, number: int) -> bytes:
        """Return the answer that it could not be done."""
        return HEADER.pack(self.id, self.command, HEADER.size, Flag.REPLY | Flag.ERROR, number)


_KNOWN: Final = frozenset(Command)


def request(number: int, command: Command, body: bytes) -> bytes:
    """Return a message that the server sends of its own accord."""
    return HEADER.pack(number, command, HEADER.size + len(body), 0, 0) + body


def version_reply(message: Message) -> bytes:
    """Return the body of the answer to VERSION.

    :raises Malformed: the client is of another major version, or its capabilities are no JSON object.
    """
    major, _ = message.unpack(VERSION)
    if major != 0:
        raise Malformed(f"the client speaks version {major} of the protocol, expected 0")
    text = message.body[VERSION.size :].rstrip(b"\0")
    try:
        proposed = json.loads(text) if text else {}
    except (ValueError, RecursionError) as error:
        raise Malformed("the client's capabilities are no JSON") from error
    if not isinstance(proposed, dict):
        raise Malformed("the client's capabilities are no object")
    # A page is 4 or 64 KiB: what a pseries guest maps for DMA.
    ours = {"max_msg_fds": MAX_DESCRIPTORS, "max_data_xfer_size": MAX_DATA, "pgsizes": 0x11000, "max_dma_maps": 65535}
    return VERSION.pack(0, 0) + json.dumps({"capabilities": ours}).encode() + b"\0"
