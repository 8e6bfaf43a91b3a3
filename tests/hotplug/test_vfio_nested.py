"""The reference for the peer: a real host kernel passes the device through, and recovers from its errors. All of it is emulated.

Only where ``-m`` names the mark, as ``ci/vfio-nested`` does. docs/vfio.md
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack

import pytest

from pytest_spapr import Deadline, GuestImage, Presence, PseriesMachine, Timeline
from pytest_spapr.case import case_of
from pytest_spapr.cells import Cell
from pytest_spapr.errors import BuildError, SpaprError
from pytest_spapr.fixtures import LaunchMachine, give_up
from pytest_spapr.hotplug.attempt import Views
from pytest_spapr.hotplug.pci import PciDevice
from pytest_spapr.hotplug.vfio import PHB, VfioFunction
from pytest_spapr.machine import Harness
from pytest_spapr.nested.host import MEMORY, PAIR, SINGLE, VCPUS, VfioHost
from pytest_spapr.nested.machine import SPEC, NestedMachine, nest
from pytest_spapr.report.artefacts import Launch
from pytest_spapr.rig import RIG, progress_at_need
from pytest_spapr.supply import Unavailable, supply_nested_host
from pytest_spapr.templates.store import NoTemplate

from .passthrough import await_event, require_used
from .recovery import SCENARIOS

pytestmark = pytest.mark.spapr_vfio_nested

# For a frame to come through two emulators.
SECONDS = 120.0
# Of the timeline, where the preparation fails.
_SHOWN = 60
_SINGLE_SLOT, _PAIR_SLOT = 4, 5


class OfTheHost:
    """What scenarios need of the nested host: a machine that has been given all that there is.

    :ivar severity: of the host's errors.
    """

    def __init__(self, host: VfioHost, machine: NestedMachine) -> None:
        self.machine = machine
        self.host = host
        self.severity = "non-fatal"
        self._addresses: dict[str, str] = {}
        self.single = self._known(machine.vfio.plug_host(SINGLE, slot=_SINGLE_SLOT), SINGLE)
        one = self._known(machine.vfio.plug_host_function(PAIR[1], 1, slot=_PAIR_SLOT), PAIR[1])
        self._alone = one.views()
        since = machine.timeline.mark()
        zero = self._known(machine.vfio.plug_host_function(PAIR[0], 0, slot=_PAIR_SLOT), PAIR[0])
        for device in (zero, one):
            device.await_configured(since)
        self._pair = (zero, one)
        self.use(self.single)

    def device(self) -> PciDevice:
        return self.single

    def pair(self) -> tuple[Views, Sequence[PciDevice]]:
        return self._alone, self._pair

    def use(self, device: PciDevice) -> None:
        """See a frame that the guest sends come out of the NIC: its rings are in the guest's memory, behind two IOMMUs."""
        guest = self.machine.guest
        with self.host.wire(0) as wire:
            guest.ask("modprobe e1000e").check()
            assert guest.pci.functions()[device.address].driver == "e1000e"
            (name,) = guest.pci.devices(device.address, "net")
            sender = bytes.fromhex(guest.read(f"/sys/class/net/{name}/address").replace(":", ""))
            guest.ask(f"ifconfig {name} 10.9.9.1 up; setsid arping -I {name} 10.9.9.9 > /dev/null 2>&1 < /dev/null &").check()
            deadline = Deadline(SECONDS)
            received = b""
            while sender not in received:
                wire.settimeout(deadline.require("a frame of the guest's NIC"))
                received += wire.recv(4096)
        guest.ask("killall arping").check()

    def error(self, device: PciDevice) -> None:
        since = self.host.timeline.mark()
        self.host.inject(self._addresses[device.id], self.severity)
        self.host.await_said(r"AER: Uncorrect\w+ \((Non-)?Fatal\) error", since)
        result = "successful" if self.severity == "non-fatal" else "failed"
        self.host.await_said(f"AER: device recovery {result}", since)

    def left(self, device: PciDevice) -> bool:
        return not self.host.enabled(self._addresses[device.id])

    def _known(self, device: PciDevice, address: str) -> PciDevice:
        self._addresses[device.id] = address
        return device


class OfThePeer:
    """What scenarios need of the peer."""

    def __init__(self, machine: PseriesMachine) -> None:
        self.machine = machine
        self._functions: dict[str, VfioFunction] = {}

    def device(self) -> PciDevice:
        (function,) = self.machine.vfio.plug()
        return self._known(function)

    def pair(self) -> tuple[Views, Sequence[PciDevice]]:
        one = self._known(self.machine.vfio.plug_function(_PAIR_SLOT, 1))
        alone = one.views()
        since = self.machine.timeline.mark()
        zero = self._known(self.machine.vfio.plug_function(_PAIR_SLOT, 0))
        for device in (zero, one):
            device.await_configured(since)
        return alone, (zero, one)

    def use(self, device: PciDevice) -> None:
        require_used(self.machine.guest, self._functions[device.id])

    def error(self, device: PciDevice) -> None:
        self._functions[device.id].error()

    def left(self, device: PciDevice) -> bool:
        return not self._functions[device.id].peer.connected

    def _known(self, function: VfioFunction) -> VfioFunction:
        return self._functions.setdefault(function.id, function)


@pytest.fixture(scope="module")
def prepared(
    request: pytest.FixtureRequest, spapr_cell: Cell, spapr_harness: Harness, guest_image: GuestImage
) -> Iterator[OfTheHost]:
    """A host and a machine in it that has all its devices, saved so."""
    slots = request.config.stash[RIG].slots()
    with ExitStack() as resources:
        with progress_at_need(request.config) as progress:
            try:
                emulator, image = supply_nested_host(spapr_cell.settings, spapr_cell.cache(), progress)
                lease = slots.take(slots.weight(VCPUS, MEMORY), progress=progress)
                resources.callback(lease.release)
                made = nest(spapr_cell.cache(), emulator, image, spapr_harness, guest_image, Timeline(), progress)
                found = resources.enter_context(made)
            except (Unavailable, BuildError, NoTemplate) as error:
                give_up(spapr_cell, Unavailable(str(error)))
            progress.phase("plugging the host's devices into the nested machine")
            host, timeline = found.host, Timeline()
            for address in (SINGLE, *PAIR):
                host.give_away(address)
            machine = found.start(timeline)
            resources.callback(machine.close)
            try:
                setting = OfTheHost(host, machine)
                host.save()
            except (SpaprError, AssertionError) as error:
                # It is no test's machine yet, whose timeline would be shown.
                error.add_note("\n".join(map(str, timeline.since()[-_SHOWN:])))
                raise
            progress.done()
        yield setting


@pytest.fixture
def nested(request: pytest.FixtureRequest, prepared: OfTheHost) -> OfTheHost:
    """The host and the machine in it as they were when they were saved."""
    machine = prepared.machine
    # For its timeline; the machine does not end with the test.
    case_of(request.node).launches.append(Launch(SPEC, machine.build, machine.image, machine.timeline, how="clone"))
    prepared.machine.go_back(prepared.host)
    prepared.severity = "non-fatal"
    return prepared


def test_each_function_is_in_an_iommu_group_of_its_own(nested: OfTheHost) -> None:
    """S18: the question of 2016, literally: two functions of one slot that the host can give to different users."""
    addresses = (SINGLE, *PAIR)
    groups = [nested.host.iommu_group(address) for address in addresses]
    assert None not in groups
    assert len(set(groups)) == len(groups)
    assert {nested.host.driver(address) for address in addresses} == {"vfio-pci"}
    assert not any(nested.left(device) for device in (nested.single, *nested.pair()[1]))


@pytest.mark.usefixtures("passthrough")
@pytest.mark.parametrize(
    ("name", "severity"),
    [
        ("removal", "non-fatal"),
        ("removal of a pair", "non-fatal"),
        ("error", "non-fatal"),
        ("error", "fatal"),
        ("error of a pair", "non-fatal"),
    ],
)
def test_the_peer_shows_what_a_real_host_shows(
    nested: OfTheHost, launch_machine: LaunchMachine, name: str, severity: str
) -> None:
    """S18: removal, functions in groups of their own, and host recovery, successful and failed: line by line the same."""
    nested.severity = severity
    real = SCENARIOS[name](nested)
    played = SCENARIOS[name](OfThePeer(launch_machine(qemu_args=PHB)))
    assert real == played


def test_the_host_takes_a_device_back(nested: OfTheHost) -> None:
    """S18: what no peer can show yet: the host's kernel asks for the device, and QEMU has the guest give it up, without a device_del."""
    host, machine, device = nested.host, nested.machine, nested.single
    since, on_host = machine.timeline.mark(), host.timeline.mark()
    host.claim_back(SINGLE)
    host.await_said("Relaying device request to user", on_host)
    await_event(machine, "DEVICE_DELETED", since)
    assert device.views() == Views(Presence.ABSENT, Presence.ABSENT)
    assert host.driver(SINGLE) is None
