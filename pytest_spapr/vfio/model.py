"""What all device models have in common: a PCI configuration space, BARs, interrupts and a reset."""

from __future__ import annotations

import struct
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Final, Protocol

from pytest_spapr.vfio.protocol import CONFIG, Irq

_CONFIG_BYTES: Final = 256
# Command, cache line size and latency timer, interrupt line. The rest QEMU keeps for itself, or a device has for good.
_WRITABLE: Final = frozenset((0x04, 0x05, 0x0C, 0x0D, 0x3C))
_STATUS: Final = 0x06
_PIN: Final = 0x3D
_CAPABILITIES: Final = 0x10
_IO: Final = 0x1
_MSIX: Final = 0x11
_MSIX_AT: Final = 0x40


class Port(Protocol):
    """What a device model reaches the guest through."""

    def interrupt(self, index: Irq, vector: int = 0) -> None:
        """Signal an interrupt that is an edge: MSI-X."""

    def level(self, *, high: bool) -> None:
        """Set the level of INTx."""

    def read(self, address: int, count: int) -> bytes:
        """Return memory of the guest. :raises DmaError: it may not."""

    def write(self, address: int, data: bytes) -> None:
        """Change memory of the guest. :raises DmaError: it may not."""


class Model(ABC):
    """A device: what its registers do. It lives in its server's thread, which alone calls it.

    :ivar regions: the sizes of its regions, by their numbers, as VFIO has them. :ivar irqs: how many of each interrupt it has.
    """

    def __init__(
        self,
        ids: tuple[int, int],
        pci_class: int,
        bars: Mapping[int, tuple[int, bool]],
        *,
        vectors: int = 0,
        table: tuple[int, int, int] | None = None,
    ) -> None:
        """Lay out the configuration space.

        :param ids: vendor and device. :param pci_class: with the interface in the last byte.
        :param bars: size of each, and whether it is of ports. :param vectors: of MSI-X; 0 for INTx.
        :param table: the BAR of the MSI-X table, and where the table and its pending bits are in it.
        """
        config = bytearray(_CONFIG_BYTES)
        struct.pack_into("<HHHHI", config, 0, *ids, 0, 0, pci_class << 8 | 1)
        for bar, (_, ports) in bars.items():
            config[0x10 + 4 * bar] = _IO if ports else 0
        struct.pack_into("<HH", config, 0x2C, *ids)
        if vectors and table is not None:
            bar, entries, pending = table
            struct.pack_into("<H", config, _STATUS, _CAPABILITIES)
            config[0x34] = _MSIX_AT
            struct.pack_into("<BBHII", config, _MSIX_AT, _MSIX, 0, vectors - 1, entries | bar, pending | bar)
        else:
            config[_PIN] = 1  # INTA
        self.config = config
        self.regions: dict[int, int] = {CONFIG: _CONFIG_BYTES, **{bar: size for bar, (size, _) in bars.items()}}
        self.irqs = {Irq.INTX: int(not vectors), Irq.MSIX: vectors, Irq.ERROR: 1}
        self.port: Port

    def take_pin(self, function: int) -> None:
        """Have the INTx pin of this function of a slot, if there is INTx: each of the first four has its own.

        QEMU may raise a line only when the guest has closed the device, and lowers it at the guest's next access to it
        [vfio_intx_interrupt, vfio_intx_eoi]. Until then whoever shares the line is interrupted without end.
        """
        if self.irqs[Irq.INTX]:
            self.config[_PIN] = 1 + function % 4

    def config_read(self, offset: int, count: int) -> bytes:
        return bytes(self.config[offset : offset + count])

    def config_write(self, offset: int, data: bytes) -> None:
        for index, byte in enumerate(data, start=offset):
            # The enable bits of MSI-X are QEMU's, too: it shows the guest its own.
            if index in _WRITABLE:
                self.config[index] = byte

    @abstractmethod
    def read(self, region: int, offset: int, count: int) -> bytes:
        """Return what the guest reads of a BAR. ``offset`` and ``count`` lie in it."""

    @abstractmethod
    def write(self, region: int, offset: int, data: bytes) -> None:
        """Take what the guest writes to a BAR."""

    @abstractmethod
    def reset(self) -> None:
        """Be as after power on, but for what the device stores."""

    def work(self) -> None:  # noqa: B027 - not every device has some
        """Do what a write has asked for and takes the guest's memory. Called when the write has been answered.

        A CPU that waits for that answer holds QEMU's lock, without which QEMU serves no access to memory.
        """


class Idle(Model):
    """A device that nobody has a driver for."""

    def __init__(self) -> None:
        super().__init__((0x1B36, 0x0005), 0xFF0000, {1: (0x1000, False)})

    def read(self, region: int, offset: int, count: int) -> bytes:  # noqa: ARG002 - they all read the same
        return bytes(count)

    def write(self, region: int, offset: int, data: bytes) -> None:
        pass

    def reset(self) -> None:
        pass
