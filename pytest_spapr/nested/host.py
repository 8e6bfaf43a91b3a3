"""The nested host: an x86-64 machine with an IOMMU and PCIe root ports that can report errors, whose kernel has VFIO; all of it emulated.

Its devices are chosen for what they show (seen with Linux 6.1 and QEMU 11.1):

- ``single``: e1000e, alone below its root port.
- ``pair``: igb, twice below one port. The kernel knows that NIC's functions for isolated (drivers/pci/quirks.c, pci_dev_acs_enabled), and
  so each is in an IOMMU group of its own. Linux only finds function 1 with ``x-pcie-ari-nextfn-1``.

Errors are injected at root ports, where they are always reported: neither NIC has the reporting bits of its Device Control register.
"""

from __future__ import annotations

import re
import shutil
import socket
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Final, NamedTuple, Self

from pytest_spapr.deadline import Budgets, Deadline
from pytest_spapr.errors import MachineError
from pytest_spapr.guest.boot import await_ready
from pytest_spapr.guest.completed import Completed
from pytest_spapr.images.store import GuestImage
from pytest_spapr.instance import Instance
from pytest_spapr.nested.emulator import Emulator
from pytest_spapr.nested.relay import CONTROL, PREFIX
from pytest_spapr.nested.rewind import Rewind
from pytest_spapr.qemu.argv import Channels
from pytest_spapr.qemu.qmp import QmpLoop
from pytest_spapr.timeline import Lane, Record, Timeline

#: The recipe of its image.
IMAGE: Final = "vfio-host"
#: MiB of the host: an unpacked QEMU, what it maps of its guest's memory, and page cache.
MEMORY: Final = 2048
VCPUS: Final = 2
#: Under TCG on two cores: 40 s are the worst that a boot was seen to take.
BUDGETS: Final = Budgets(launch=60, boot=300, ssh=60, command=60, qmp=60, plug=60, unplug=60)

#: Addresses in the host.
SINGLE: Final = "0000:01:00.0"
PAIR: Final = ("0000:02:00.0", "0000:02:00.1")
_PORTS: Final[Mapping[str, str]] = {"01": "root1", "02": "root2"}
_FIRST_PORT: Final = 4
_PORT_ADDRESSES: Final = tuple(f"0000:00:{_FIRST_PORT + number:02x}.0" for number in range(len(_PORTS)))
# PCI_ERR_UNCOR_STATUS of the AER capability, which root ports of QEMU have at 0x100.
_UNCORRECTABLE: Final = 0x104
#: The slot of the first disk; their order is that of their letters.
_FIRST_DISK: Final = 8
_AER_ERRORS: Final = {"non-fatal": "COMP_TIME", "fatal": "DLP"}
_DEVICES: Final = "/sys/bus/pci/devices"
_NET: Final = "net"
_DRIVER: Final = "vfio-pci"
# A host that gets a core for part of the time only must not take its timers for broken ("timer doesn't work through Interrupt-remapped
# IO-APIC", a panic at load 10).
_TIMERS: Final = "no_timer_check tsc=reliable nowatchdog"
_KERNEL_ARGS: Final = f"console=ttyS0 loglevel=4 panic=0 intel_iommu=on mitigations=off random.trust_cpu=on {_TIMERS}"


class Disk(NamedTuple):
    """A file that the host has as a disk, for reading. :ivar name: at most 20 characters."""

    name: str
    path: Path


def disk_path(number: int) -> str:
    """Return the name in the host of its disk ``number``, from 0."""
    return f"/dev/vd{chr(ord('a') + number)}"


def argv(emulator: Emulator, image: GuestImage, channels: Channels, ports: Path, disks: Sequence[Disk]) -> list[str]:
    """Return the host's command line. :param ports: the directory for the sockets behind the nested QEMU's ports."""
    return [*emulator.command, *_arguments(image, channels, ports, disks)]


def _arguments(image: GuestImage, channels: Channels, ports: Path, disks: Sequence[Disk]) -> Iterator[str]:
    yield from ("-nodefaults", "-no-user-config", "-display", "none")
    yield from ("-machine", "q35", "-accel", "tcg,thread=multi", "-cpu", "max,la57=off")
    yield from ("-smp", str(VCPUS), "-m", f"{MEMORY}M")
    yield from ("-chardev", f"socket,id=qmp,fd={channels.qmp}", "-object", "monitor-qmp,id=monitor,chardev=qmp")
    yield from ("-chardev", f"socket,id=console,fd={channels.console}", "-serial", "chardev:console")
    # Before what it is to watch over.
    yield from ("-device", "intel-iommu,intremap=on,caching-mode=on,aw-bits=48")
    yield from _passable(ports)
    yield from ("-device", "virtio-serial-pci,id=serial,bus=pcie.0,addr=2,max_ports=16")
    for name in ("kernel", "service", "shell"):
        yield from ("-chardev", f"socket,id={name},fd={getattr(channels, name)}", *_port(name))
    for name in (CONTROL, *(f"{PREFIX}{name}" for name in Channels._fields)):
        yield from ("-chardev", f"socket,id={name},path={ports}/{name},server=on,wait=off", *_port(name))
    for number, disk in enumerate(disks):
        path = str(disk.path).replace(",", ",,")
        yield from ("-drive", f"if=none,id=disk{number},file={path},format=raw,readonly=on")
        place = f"bus=pcie.0,addr={_FIRST_DISK + number:#x}"
        yield from ("-device", f"virtio-blk-pci,drive=disk{number},serial={disk.name},{place}")
    yield from ("-kernel", str(image.kernel), "-initrd", str(image.initramfs), "-append", _KERNEL_ARGS)


def _passable(ports: Path) -> Iterator[str]:
    """Yield what can be passed through. Each NIC's wire is a socket (see :meth:`VfioHost.wire`)."""
    for slot, port in enumerate(_PORTS.values(), start=_FIRST_PORT):
        yield from ("-device", f"pcie-root-port,id={port},bus=pcie.0,addr={slot:#x},chassis={slot},slot={slot}")
    for number in range(1 + len(PAIR)):
        yield from ("-netdev", f"stream,id=net{number},server=on,addr.type=unix,addr.path={ports}/{_NET}{number}")
    yield from ("-device", "e1000e,id=single,netdev=net0,bus=root1,romfile=")
    more = "multifunction=on,x-pcie-ari-nextfn-1=on"
    yield from ("-device", f"igb,id=pair0,netdev=net1,bus=root2,addr=0.0,romfile=,{more}")
    yield from ("-device", "igb,id=pair1,netdev=net2,bus=root2,addr=0.1,romfile=")


def _port(name: str) -> tuple[str, str]:
    return "-device", f"virtserialport,bus=serial.0,chardev={name},name={name}"


class VfioHost:
    """A running host. Ended by :meth:`close`; it dies with this process.

    :ivar timeline: what was seen of it. :ivar ports: the directory with the sockets behind the nested QEMU's ports.
    """

    def __init__(self, instance: Instance, timeline: Timeline, ports: Path, rewind: Rewind, resources: ExitStack) -> None:
        self.timeline = timeline
        self.ports = ports
        self._instance = instance
        self._resources = resources
        self._rewind = rewind
        self._tenant: Timeline | None = None
        timeline.listen(self._pass_on)

    @classmethod
    def start(
        cls, emulator: Emulator, image: GuestImage, disks: Sequence[Disk], snapshot: Path, loop: QmpLoop, timeline: Timeline
    ) -> Self:
        """Boot a host; 15 s under TCG. On any error nothing stays behind.

        :param disks: the first is the nested QEMU (``payload``). :param snapshot: a file to be, see :meth:`save`.
        :raises LaunchFailed: QEMU did not start. :raises BootFailed: the host did not come up.
        """
        with ExitStack() as resources:
            ports = Path(tempfile.mkdtemp(prefix="spapr-"))
            resources.callback(shutil.rmtree, ports, ignore_errors=True)

            def command(channels: Channels) -> list[str]:
                return argv(emulator, image, channels, ports, disks)

            instance = Instance(command, emulator, loop, timeline, BUDGETS, keep=False, traces=False)
            resources.callback(instance.close)
            await_ready(timeline, 0, Deadline(BUDGETS.boot))
            rewind = Rewind(instance.qmp, timeline, snapshot)
            host = cls(instance, timeline, ports, rewind, resources.pop_all())
            try:
                host._wear_in()
            except BaseException:
                host.close()
                raise
        return host

    def close(self) -> None:
        """End it, with whatever runs in it. Safe to call twice."""
        self._resources.close()

    def save(self) -> None:
        """Save all of the host, the machine in it included, once; 1 s, and as much space as they use of their memory."""
        self._clear_errors()
        self._rewind.save()

    def go_back(self) -> None:
        """Take all of the host back to what it was when it was saved; 2 s.

        Nobody may wait for an answer of it then, and the same relay must stand for the machine in it.
        """
        self._step("back to what it was when it was saved")
        self._clear_errors()
        self._rewind.back()

    def accommodate(self, tenant: Timeline | None) -> None:
        """Have what the host's kernel says from now on, and what is done to the host, stand on the timeline of the machine in it, too."""
        self._tenant = tenant

    def run(self, command: str) -> Completed:
        """Run a shell command in the host, as root, whatever its status."""
        return self._instance.shell.run(command, Deadline(BUDGETS.command))

    def give_away(self, address: str) -> None:
        """Give a PCI function to vfio-pci, which nobody else has.

        :raises CommandFailed: it does not take it.
        """
        device = f"{_DEVICES}/{address}"
        self.run(
            f"echo {_DRIVER} > {device}/driver_override && echo {address} > /sys/bus/pci/drivers_probe && test -e {device}/driver"
        ).check()

    def claim_back(self, address: str) -> None:
        """Begin to take a PCI function from vfio-pci, and return: the kernel asks whoever uses it to let it go, and waits."""
        self._step(f"the host wants {address} back")
        unbind = f"echo {address} > /sys/bus/pci/drivers/{_DRIVER}/unbind"
        self.run(f"setsid sh -c '{unbind}' > /dev/null 2>&1 < /dev/null &").check()

    def enabled(self, address: str) -> bool:
        """Return whether somebody uses a PCI function: vfio-pci turns it on for its user, and off when that lets it go."""
        return self.run(f"cat {_DEVICES}/{address}/enable").check().stdout != "0\n"

    def driver(self, address: str) -> str | None:
        """Return the name of the host's driver of a PCI function, None where it has none."""
        return self._link(address, "driver")

    def iommu_group(self, address: str) -> str | None:
        """Return the IOMMU group of a PCI function, None where it has none."""
        return self._link(address, "iommu_group")

    def inject(self, address: str, severity: str) -> None:
        """Have the root port above a PCI function report an uncorrectable error.

        :param severity: ``non-fatal``, from which the host's kernel recovers, or ``fatal``: for that it resets the link, and as QEMU's
            root port does not report the link as up again, it gives up after 2 s.
        :raises MachineError: the port cannot report it.
        """
        port = _PORTS[address.split(":")[1]]
        self._step(f"{severity} error at {port}")
        said = self._instance.qmp.hmp(f"pcie_aer_inject_error {port} {_AER_ERRORS[severity]}")
        if not said.startswith("OK"):
            raise MachineError(f"no error could be injected at {port}: {said.strip()}")

    def await_said(self, pattern: str, since: int, seconds: float = 60) -> Record:
        """Wait until the host's kernel has said what matches, after the cursor of :attr:`timeline`.

        :raises DeadlineExpired: it does not.
        """

        def decide(record: Record) -> Record | None:
            return record if record.lane is Lane.KERNEL and re.search(pattern, record.text) else None

        what = f"the host's kernel to say {pattern!r}"
        return self.timeline.wait(decide, since=since, deadline=Deadline(seconds), what=what)

    def wire(self, number: int) -> socket.socket:
        """Return a socket that each frame of a NIC comes through, behind its length as four bytes (``-netdev stream``).

        :param number: 0 is ``single``, the others are ``pair``.
        """
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(f"{self.ports}/{_NET}{number}")
        return sock

    def _clear_errors(self) -> None:
        """Clear all ports' errors, which failed recoveries leave: QEMU loads no state that names another first error."""
        clear = (
            f"printf '\\377\\377\\377\\377' | dd of={_DEVICES}/{{}}/config bs=4 count=1 seek={_UNCORRECTABLE // 4} conv=notrunc"
        )
        self.run("; ".join(clear.format(port) for port in _PORT_ADDRESSES)).check()

    def _wear_in(self) -> None:
        """Have each port report an error for the first time, so that a saved state fits it later.

        QEMU's injection writes zeros over the Link Capabilities, which are next to what it means to write (pcie_aer_inject_uncor_error:
        pci_set_long of PCI_EXP_DEVSTA, 10.0 to 11.1), and a state with them does not load into a port without.
        """
        for address in (SINGLE, PAIR[0]):
            since = self.timeline.mark()
            self.inject(address, "non-fatal")
            self.await_said("AER: device recovery", since)

    def _link(self, address: str, name: str) -> str | None:
        done = self.run(f"readlink {_DEVICES}/{address}/{name}")
        return done.stdout.strip().rpartition("/")[2] if done.status == 0 else None

    def _step(self, text: str) -> None:
        self.timeline.step(text)

    def _pass_on(self, record: Record) -> None:
        if self._tenant is not None and record.lane in (Lane.KERNEL, Lane.STEP):
            self._tenant.record(Lane.HOST, record.text)
