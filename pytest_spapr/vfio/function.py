"""One PCI function as the protocol shows it: what each message does to a device model, without sockets or time."""

from __future__ import annotations

import errno
import os
import select
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from pytest_spapr.vfio import protocol
from pytest_spapr.vfio.dma import DmaMap
from pytest_spapr.vfio.model import Model
from pytest_spapr.vfio.protocol import CONFIG, Command, Irq, Malformed, Message, SetIrq
from pytest_spapr.vfio.stream import close_all

_DATA: Final = SetIrq.NONE | SetIrq.BOOL | SetIrq.EVENTFD
_ACTIONS: Final = SetIrq.MASK | SetIrq.UNMASK | SetIrq.TRIGGER


class Function:
    """A device model with its client's interrupts and memory.

    :param descriptors: whether the files that the client passes for DMA are what the guest has for memory. Where they are not, memory is
        reached by messages, and no file is touched: a clone's private memory has its template's file behind it.
    """

    def __init__(self, model: Model, *, descriptors: bool) -> None:
        self.model = model
        self.dma = DmaMap()
        self._descriptors = descriptors
        self._eventfds: dict[tuple[Irq, int], int] = {}
        self._high = False
        self._masked = False
        self._commands: dict[int, Callable[[Message], bytes]] = {
            Command.VERSION: protocol.version_reply,
            Command.DMA_MAP: self._dma_map,
            Command.DMA_UNMAP: self._dma_unmap,
            Command.GET_INFO: self._info,
            Command.GET_REGION_INFO: self._region_info,
            Command.GET_IRQ_INFO: self._irq_info,
            Command.SET_IRQS: self._set_irqs,
            Command.REGION_READ: self._read,
            Command.REGION_WRITE: self._write,
            Command.RESET: self._reset,
        }

    def answer(self, message: Message) -> bytes:
        """Do what a message asks for and return the answer. Closes what descriptors came with it and nobody wants."""
        try:
            act = self._commands.get(message.command)
            if act is None:
                raise Malformed(f"{message.name} is not served", errno.ENOTSUP)
            return message.reply(act(message))
        except Malformed as error:
            return message.error(error.errno)
        finally:
            close_all(message.descriptors)

    def disconnect(self) -> None:
        """Forget the client: its interrupts and its memory. The device stays as it is."""
        for descriptor in self._eventfds.values():
            os.close(descriptor)
        self._eventfds.clear()
        self.dma.clear()
        self._masked = False

    def listens(self, index: Irq) -> bool:
        """Whether the client has given a descriptor for an interrupt."""
        return any(known is index for known, _ in self._eventfds)

    def interrupt(self, index: Irq, vector: int = 0) -> bool:
        """Signal an interrupt, and return whether anybody hears it."""
        descriptor = self._eventfds.get((index, vector))
        if descriptor is None:
            return False
        # A client may pass anything, also what would make its server wait.
        poll = select.poll()
        poll.register(descriptor, select.POLLOUT)
        if not any(ready & select.POLLOUT for _, ready in poll.poll(0)):
            return False
        try:
            os.eventfd_write(descriptor, 1)
        except OSError:
            return False
        return True

    def level(self, *, high: bool) -> None:
        """Set INTx. It is masked from its signal until the client has the guest's word that it was served."""
        self._high = high
        if high and not self._masked and self.interrupt(Irq.INTX):
            self._masked = True

    def access(self, message: Message) -> tuple[int, int, int]:
        """Return the region, the offset and the size that a message reads or writes.

        :raises Malformed: there is no such region, or it is not so large.
        """
        offset, region, count = message.unpack(protocol.ACCESS)
        size = self.model.regions.get(region, 0)
        if not 0 < count <= protocol.MAX_DATA or offset + count > size:
            raise Malformed(f"{count} bytes at {offset:#x} of region {region}, which has {size}")
        return region, offset, count

    def _info(self, message: Message) -> bytes:
        message.unpack(protocol.DEVICE_INFO)
        return protocol.DEVICE_INFO.pack(protocol.DEVICE_INFO.size, protocol.DEVICE_FLAGS, protocol.REGIONS, len(Irq))

    def _region_info(self, message: Message) -> bytes:
        _, _, index, _, _, _ = message.unpack(protocol.REGION_INFO)
        if index >= protocol.REGIONS:
            raise Malformed(f"there is no region {index}")
        size = self.model.regions.get(index, 0)
        flags = protocol.READABLE | protocol.WRITABLE if size else 0
        return protocol.REGION_INFO.pack(protocol.REGION_INFO.size, flags, index, 0, size, 0)

    def _irq_info(self, message: Message) -> bytes:
        _, _, index, _ = message.unpack(protocol.IRQ_INFO)
        irq = _irq(index)
        flags = protocol.IRQ_EVENTFD
        flags |= protocol.IRQ_MASKABLE | protocol.IRQ_AUTOMASKED if irq is Irq.INTX else protocol.IRQ_NORESIZE
        return protocol.IRQ_INFO.pack(protocol.IRQ_INFO.size, flags, index, self.model.irqs.get(irq, 0))

    def _set_irqs(self, message: Message) -> bytes:
        _, flags, index, start, count = message.unpack(protocol.IRQ_SET)
        irq = _irq(index)
        if start + count > self.model.irqs.get(irq, 0):
            raise Malformed(f"{irq.name} {start} to {start + count}, of {self.model.irqs.get(irq, 0)}")
        kind, action = SetIrq(flags) & _DATA, SetIrq(flags) & _ACTIONS
        match kind, action:
            case SetIrq.EVENTFD, SetIrq.TRIGGER:
                self._listen(irq, start, count, message.descriptors)
            case SetIrq.NONE, SetIrq.TRIGGER if count == 0:
                self._listen(irq, 0, self.model.irqs.get(irq, 0), [])
            case SetIrq.NONE, SetIrq.TRIGGER:
                for vector in range(start, start + count):
                    self.interrupt(irq, vector)
            case SetIrq.NONE, SetIrq.MASK if irq is Irq.INTX:
                self._masked = True
            case SetIrq.NONE, SetIrq.UNMASK if irq is Irq.INTX:
                self._masked = False
                self.level(high=self._high)
            case _:
                raise Malformed(f"SET_IRQS with flags {flags:#x} of {irq.name}")
        return b""

    def _listen(self, irq: Irq, start: int, count: int, descriptors: list[int]) -> None:
        """Take a descriptor for each interrupt of a range, or none at all: nobody listens to them then."""
        if descriptors and len(descriptors) != count:
            raise Malformed(f"{len(descriptors)} descriptors for {count} interrupts")
        for vector in range(start, start + count):
            if (known := self._eventfds.pop((irq, vector), None)) is not None:
                os.close(known)
            if descriptors:
                self._eventfds[irq, vector] = descriptors.pop(0)
        if irq is Irq.INTX:
            self._masked = False
            self.level(high=self._high)

    def _read(self, message: Message) -> bytes:
        region, offset, count = self.access(message)
        found = self.model.config_read(offset, count) if region == CONFIG else self.model.read(region, offset, count)
        return protocol.ACCESS.pack(offset, region, count) + found

    def _write(self, message: Message) -> bytes:
        region, offset, count = self.access(message)
        data = message.body[protocol.ACCESS.size :]
        if len(data) != count:
            raise Malformed(f"{len(data)} bytes of data, expected {count}")
        if region == CONFIG:
            self.model.config_write(offset, data)
        else:
            self.model.write(region, offset, data)
        return protocol.ACCESS.pack(offset, region, count)

    def _reset(self, message: Message) -> bytes:  # noqa: ARG002 - all commands have one
        self.model.reset()
        self.level(high=False)
        return b""

    def _dma_map(self, message: Message) -> bytes:
        _, flags, offset, address, size = message.unpack(protocol.DMA_MAP)
        if len(message.descriptors) > 1:
            raise Malformed(f"{len(message.descriptors)} descriptors for one mapping")
        passed = message.descriptors.pop() if message.descriptors and self._descriptors else None
        self.dma.add(address, size, offset, flags, passed)
        return b""

    def _dma_unmap(self, message: Message) -> bytes:
        _, flags, address, size = message.unpack(protocol.DMA_UNMAP)
        if flags & protocol.UNMAP_ALL:
            self.dma.clear()
        else:
            self.dma.remove(address, size)
        # QEMU expects the whole of it back.
        return message.body[: protocol.DMA_UNMAP.size]


def _irq(index: int) -> Irq:
    with suppress(ValueError):
        return Irq(index)
    raise Malformed(f"there is no interrupt {index}")
