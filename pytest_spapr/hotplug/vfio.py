"""Passed-through PCI functions, whose host side is a vfio-user server that the test controls (``pytest_spapr.vfio``)."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Final, Literal

from pytest_spapr.deadline import Deadline
from pytest_spapr.errors import MachineError
from pytest_spapr.hotplug.ledger import Ledger
from pytest_spapr.hotplug.pci import Pci, PciDevice
from pytest_spapr.hotplug.phb import Phbs
from pytest_spapr.machine import Machine
from pytest_spapr.qemu.passthrough import DRIVER, LONE_CONTAINER_ABORTS
from pytest_spapr.timeline import Record
from pytest_spapr.vfio.fault import ACCESSES, ALL, Fault, Wrong
from pytest_spapr.vfio.model import Idle, Model
from pytest_spapr.vfio.nvme import Nvme
from pytest_spapr.vfio.peer import Peer
from pytest_spapr.vfio.protocol import Command, Irq
from pytest_spapr.vfio.serial import Serial

_PHB: Final = "passthrough"
_INDEX: Final = 1
# A window of 1 GiB, the default, has QEMU send a message for each of its pages whenever the table is cleared: 40 s for each device.
_WINDOW: Final = 0x1000000
#: Arguments for a machine that has the PHB from the start, for ``@pytest.mark.spapr(qemu_args=PHB)``: else it is plugged, in 2 s.
PHB: Final = ("-device", f"spapr-pci-host-bridge,index={_INDEX},id={_PHB},dma_win_size={_WINDOW:#x},ddw=off")
_BALLAST_SLOT: Final = 30
_FIRST_SLOT: Final = 5
_HOST_SLOT: Final = 4


class VfioFunction(PciDevice):
    """A PCI function that is passed through. :ivar peer: its server. :ivar model: the device in it."""

    def __init__(self, device: PciDevice, ledger: Ledger, peer: Peer) -> None:
        super().__init__(
            device.machine,
            ledger,
            device.id,
            device.drcs,
            device.driver,
            device.slot,
            function=device.function,
            domain=device.domain,
        )
        self.peer = peer
        self.model = peer.model

    @property
    def sent(self) -> bytes:
        """What the guest has sent through a serial port."""
        assert isinstance(self.model, Serial)
        return bytes(self.model.sent)

    @property
    def messages(self) -> list[str]:
        """What QEMU has asked of the server, in order, and when it came and went: the names of all messages."""
        return self.messages_since(0)

    def messages_since(self, cursor: int) -> list[str]:
        """As :attr:`messages`, from a cursor of the timeline on."""
        named = (record.data or {} for record in self.peer.journal.since(cursor))
        return [str(data["command"]) for data in named if "command" in data]

    def await_disconnect(self, since: int) -> Record:
        """Wait until QEMU has left the server, after the cursor.

        :raises DeadlineExpired: it stays.
        """
        return self.machine.timeline.wait(
            lambda record: (
                record if "DISCONNECT" in record.text and (record.data or {}).get("function") == self.peer.name else None
            ),
            since=since,
            deadline=Deadline(self.machine.budgets.unplug),
            what=f"QEMU to leave the server of {self.id}",
        )

    def error(self) -> None:
        """Signal an uncorrectable error, as the host's kernel does when recovery begins: QEMU stops the machine.

        :raises MachineError: QEMU does not listen.
        """
        self.peer.interrupt(Irq.ERROR)

    def vanish(self, *, busy: bool = False) -> None:
        """Be gone: the connection breaks, and nobody can connect.

        :param busy: go with a message of QEMU's unread, as a server that is killed at its work; waits for one, 5 s at most.
        :raises MachineError: none came.
        """
        self.peer.vanish(busy=busy)

    def come_back(self) -> None:
        """Be there again, for QEMU to connect to."""
        self.peer.come_back()

    @contextmanager
    def held(self, commands: frozenset[Command] = ACCESSES) -> Iterator[Fault]:
        """Hold back answers inside the ``with`` block and give them at its end.

        One that is held for 4 s would come too late, and the server breaks the connection instead.

        :param commands: what is held back; default: what the guest reads and writes.
        """
        with self._fault(Fault(Wrong.HELD, commands)) as fault:
            yield fault

    @contextmanager
    def resets_unanswered(self) -> Iterator[Fault]:
        """Never answer a reset that is asked for inside the ``with`` block."""
        with self._fault(Fault(Wrong.UNANSWERED, frozenset({Command.RESET}))) as fault:
            yield fault

    @contextmanager
    def unanswered(self) -> Iterator[Fault]:
        """Never answer anything that is asked for inside the ``with`` block but DMA mappings."""
        with self._fault(Fault(Wrong.UNANSWERED, ALL)) as fault:
            yield fault

    @contextmanager
    def all_ones(self) -> Iterator[Fault]:
        """Return ones for whatever is read, and lose what is written, inside the ``with`` block."""
        with self._fault(Fault(Wrong.ONES, ACCESSES)) as fault:
            yield fault

    @contextmanager
    def refusing(self, number: int = errno.EIO) -> Iterator[Fault]:
        """Answer accesses with an error inside the ``with`` block. :param number: an ``errno``."""
        with self._fault(Fault(Wrong.REFUSED, ACCESSES, errno=number)) as fault:
            yield fault

    @contextmanager
    def slow(self, seconds: float) -> Iterator[Fault]:
        """Answer each access only after a while inside the ``with`` block."""
        with self._fault(Fault(Wrong.SLOW, ACCESSES, seconds=seconds)) as fault:
            yield fault

    @contextmanager
    def _fault(self, fault: Fault) -> Iterator[Fault]:
        """Set a fault for the ``with`` block.

        :raises MachineError: it befell nothing.
        """
        self.peer.set_fault(fault)
        try:
            yield fault
        finally:
            self.peer.take_back(fault)
        if not fault.hits:
            raise MachineError(f"{self.id} was {fault.wrong} in vain: QEMU asked for nothing meanwhile")


Name = Literal["serial", "nvme", "nvme-intx", "idle"]
_MODELS: Final[dict[Name, Callable[[], Model]]] = {
    "serial": Serial,
    "nvme": Nvme,
    "nvme-intx": partial(Nvme, vectors=0),
    "idle": Idle,
}


class Vfio:
    """The passed-through devices of a machine. They have a PHB of their own, so that other devices' DMA is not told to their servers.

    :ivar functions: all that were ever plugged.
    :ivar ballast: functions that nobody uses, and no guest is told of, for a build that dies of a PHB with one such device alone.
    """

    def __init__(self, machine: Machine, ledger: Ledger, phbs: Phbs) -> None:
        self._machine = machine
        self._ledger = ledger
        self._phbs = phbs
        self._pci: Pci | None = None
        self._peers: list[Peer] = []
        machine.at_end.append(self.close)
        self.functions: list[VfioFunction] = []
        self.ballast: list[VfioFunction] = []

    def plug(
        self, functions: int = 1, *, model: Name = "serial", slot: int | None = None, wait: bool = True
    ) -> list[VfioFunction]:
        """Plug a device of 1 to 8 functions, each with a server of its own, and wait until the guest has all of it; 2 s under TCG.

        :param model: what each function is. :param slot: on the PHB; default: the first that no device has had, from 5 on.
        :param wait: False returns with QEMU's reply. :return: function 0 first.
        :raises MachineError: the build has no vfio-user devices. :raises QmpRefused: QEMU refused one; those before it stay.
        :raises NotConfigured: the guest did not take one.
        """
        self._require_driver()
        pci = self._bridge()
        slot = max([_FIRST_SLOT - 1, *(one.slot for one in self.functions)]) + 1 if slot is None else slot
        since = self._machine.timeline.mark()
        deadline = Deadline(self._machine.budgets.plug)
        found = [self._add(pci, slot, function, _MODELS[model], several=functions > 1) for function in reversed(range(functions))]
        self.functions += found
        if wait and self._machine.has_guest:
            for one in found:
                one.await_configured(since, deadline)
        return found[::-1]

    def plug_function(self, slot: int, function: int, *, model: Name = "serial") -> VfioFunction:
        """Plug one function of a device of several, without waiting for the guest: it is told of the others with function 0.

        :raises: as :meth:`plug`.
        """
        self._require_driver()
        found = self._add(self._bridge(), slot, function, _MODELS[model], several=True)
        self.functions.append(found)
        return found

    def plug_host(self, address: str, *, slot: int | None = None) -> PciDevice:
        """Plug a PCI function of the host, and wait until the guest has it.

        :param address: on the host, e.g. ``0000:01:00.0``; what must be true of it, ``vfio.host.require_passable`` checks.
        :param slot: on the PHB of these devices; default: 4, which no other has. :raises: as :meth:`plug`.
        """
        # romfile: nobody runs it, and reading it from a device in use can fail.
        return self._place().plug("vfio-pci", slot=_HOST_SLOT if slot is None else slot, host=address, rombar=0)

    def plug_host_function(self, address: str, function: int, *, slot: int = _HOST_SLOT) -> PciDevice:
        """Plug a PCI function of the host as one of a device of several, without waiting for the guest; else as :meth:`plug_host`."""
        pci = self._place()
        return pci.plug("vfio-pci", slot=slot, function=function, wait=False, host=address, rombar=0, multifunction=True)

    def replug(self, device: VfioFunction, *, wait: bool = True) -> VfioFunction:
        """Plug a device of one function again that was unplugged, with the server that it had."""
        since = self._machine.timeline.mark()
        again = self._connect(self._bridge(), device.slot, device.function, device.peer, several=False)
        self.functions.append(again)
        if wait:
            again.await_configured(since)
        return again

    def clear(self) -> None:
        """Take away what :meth:`plug` has brought along, when all its devices have gone: such a machine can migrate again."""
        while self.ballast:
            device = self.ballast.pop()
            since = self._machine.timeline.mark()
            self._machine.qmp.execute("device_del", {"id": device.id})
            device.await_disconnect(since)

    def close(self) -> None:
        """End all servers. QEMU finds its devices gone."""
        while self._peers:
            self._peers.pop().close()

    def _require_driver(self) -> None:
        if DRIVER not in self._machine.build.devices:
            raise MachineError(f"{self._machine.build.version_text} has no {DRIVER}: QEMU 10.1 and later have it")

    def _bridge(self) -> Pci:
        """Return the PHB of these devices, with the ballast that the build needs."""
        pci = self._place()
        if not self.ballast and LONE_CONTAINER_ABORTS in self._machine.build.features:
            # Two, of a slot without a function 0, so that the guest is told of none: it costs next to nothing.
            self.ballast = [self._add(pci, _BALLAST_SLOT, function, Idle, several=True) for function in (2, 1)]
        return pci

    def _place(self) -> Pci:
        """Return the PHB of these devices; plugged at the first call, if the machine does not have it."""
        if self._pci is None:
            names = [child["name"] for child in self._machine.qmp.execute("qom-list", {"path": "/machine/peripheral"})]
            if _PHB in names:
                self._pci = Pci(self._machine, self._ledger, bus=f"{_PHB}.0", domain=_INDEX)
            else:
                phb = self._phbs.plug(device_id=_PHB, dma_win_size=_WINDOW, ddw=False)
                self._pci = phb.pci
        return self._pci

    def _add(self, pci: Pci, slot: int, function: int, model: Callable[[], Model], *, several: bool) -> VfioFunction:
        shared = any(one["share"] for one in self._machine.qmp.execute("query-memdev"))
        made = model()
        made.take_pin(function)
        peer = Peer(f"{slot:02x}.{function}", made, self._machine.timeline, descriptors=shared)
        self._peers.append(peer)
        return self._connect(pci, slot, function, peer, several=several)

    def _connect(self, pci: Pci, slot: int, function: int, peer: Peer, *, several: bool) -> VfioFunction:
        device = pci.plug(
            DRIVER,
            slot=slot,
            function=function,
            device_id=self._ledger.new_id("vfio"),
            wait=False,
            multifunction=several,
            socket={"type": "unix", "path": peer.address},
        )
        return VfioFunction(device, self._ledger, peer)
