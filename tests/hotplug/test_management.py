"""What a management layer concludes: our rules held against a real libvirt, which has our QEMU build and guest image for a domain."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from pytest_spapr import Contract, Deadline, GuestImage, Kind, MachineSpec, Timeline, Verdict
from pytest_spapr.cells import Cell
from pytest_spapr.fixtures import give_up
from pytest_spapr.hotplug.defects import KNOWN_DEFECTS
from pytest_spapr.hotplug.management import WAIT, fails
from pytest_spapr.libvirt.daemon import Daemon, ordinary_user
from pytest_spapr.libvirt.domain import Domain
from pytest_spapr.machine import Harness
from pytest_spapr.rig import RIG, progress_at_need
from pytest_spapr.supply import Unavailable, supply_libvirt

from .managed import Call, Managed, plugged

REFUSALS = {Kind.CORE: "last online CPU", Kind.DIMM: "later LMB"}
# For libvirt to tell of what it has heard.
SECONDS = 10.0


@pytest.fixture(scope="module")
def daemon(request: pytest.FixtureRequest, spapr_cell: Cell) -> Iterator[Daemon]:
    """A libvirtd of our own."""
    user = ordinary_user()
    try:
        if user is None:
            raise Unavailable("root's libvirt is the host's own, and root may not make a user namespace here to be somebody else")
        with progress_at_need(request.config) as progress:
            libvirt = supply_libvirt(spapr_cell.settings, spapr_cell.cache(), progress)
    except Unavailable as error:
        give_up(spapr_cell, error)
    with Daemon(libvirt, user) as daemon:
        yield daemon


@pytest.fixture
def domain(
    request: pytest.FixtureRequest, daemon: Daemon, spapr_harness: Harness, spapr_accelerator: str, guest_image: GuestImage
) -> Iterator[Domain]:
    """A domain of it with a booted guest."""
    defect = KNOWN_DEFECTS["tcg-busy-vcpu-device-add"]
    if defect.applies(spapr_harness.build, spapr_accelerator, None):
        pytest.skip(f"libvirt's device_add was never answered by {spapr_harness.build.version_text}; known defect {defect.id}")
    spec = MachineSpec(max_cpus=4, accelerator=spapr_accelerator)
    slots = request.config.stash[RIG].slots()
    with progress_at_need(request.config) as progress, slots.take(slots.weight(spec.vcpus, spec.memory), progress=progress):
        domain = Domain.start(daemon, spapr_harness, spec, guest_image, Timeline())
        try:
            yield domain
        finally:
            domain.close()


def concluded(device: Managed, call: Call) -> Verdict:
    """Return what libvirt concluded, once it is clear that our rules say the same, and that its call ended as they say."""
    libvirts = device.libvirt_concludes(call)
    assert device.we_conclude(call) is libvirts, call
    assert call.answer.failed is fails(libvirts, device.kind), call
    assert (call.answer.seconds >= WAIT) is (libvirts is Verdict.TIMED_OUT), call
    return libvirts


def test_libvirt_says_that_a_device_is_removed(domain: Domain) -> None:
    """X12: a PCI device; the removal of others follows their refusal, below."""
    with plugged(domain, Kind.PCI) as device:
        call = device.detach()
        if concluded(device, call) is Verdict.TIMED_OUT:
            # drmgr takes 3.5 s, and on a busy host now and then longer than libvirt waits.
            device.await_removal(call)
        assert device.we_conclude(call) is Verdict.REMOVED
        assert device.libvirt_concludes(call) is Verdict.REMOVED
        assert device.gone


@pytest.mark.parametrize("kind", REFUSALS, ids=str)
def test_libvirt_says_that_the_guest_rejected_it(domain: Domain, contract: Contract, kind: Kind) -> None:
    """C34, M32, X12: a refusal that QEMU tells ends libvirt's wait and is an event of its own; it can ask again."""
    promised = contract.expect(kind, f"refusal: {REFUSALS[kind]}")
    if all(rule.name != "DEVICE_UNPLUG_GUEST_ERROR" for rule in promised.events):
        pytest.skip(f"this QEMU tells no refusal that libvirt hears: {promised.source}")
    with plugged(domain, kind) as device:
        with device.refused():
            call = device.detach()
            assert concluded(device, call) is Verdict.REJECTED
            domain.await_event("device-removal-failed", device.alias, call.since, Deadline(SECONDS))
        assert device.configured
        assert concluded(device, device.detach()) is Verdict.REMOVED
        assert device.gone


# libvirt waits 10 s each time, and says the same of a DIMM as of a PCI device.
@pytest.mark.parametrize(
    "kind", [Kind.CORE, *(pytest.param(kind, marks=pytest.mark.spapr_slow) for kind in (Kind.DIMM, Kind.PCI))], ids=str
)
def test_libvirt_times_out_and_the_device_goes_later(domain: Domain, kind: Kind) -> None:
    """X12: of a DIMM and a PCI device it says that all went well, although they are still there. QEMU refuses a second request for them."""
    with plugged(domain, kind) as device:
        with device.silenced():
            call = device.detach()
            assert concluded(device, call) is Verdict.TIMED_OUT
            if kind is not Kind.CORE:
                again = device.detach()
                assert "already in progress" in again.answer.text
                assert concluded(device, again) is Verdict.REJECTED
        device.await_removal(call)
        assert device.we_conclude(call) is Verdict.REMOVED
        assert device.gone
