"""Fixtures of the suite."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from pytest_spapr import Contract, Kind, Outcome, QemuBuild, SpaprError
from pytest_spapr.builds.packages import SOURCES
from pytest_spapr.cells import Cell
from pytest_spapr.errors import ConfigError, MirrorError
from pytest_spapr.fixtures import give_up
from pytest_spapr.hotplug.defects import KNOWN_DEFECTS
from pytest_spapr.hotplug.device import Device
from pytest_spapr.hotplug.expectation import Expectation
from pytest_spapr.qemu.passthrough import DRIVER
from pytest_spapr.supply import Unavailable

from .kinds import KINDS

ToldRefusal = Callable[[Device, str], Expectation]


@pytest.fixture(params=KINDS, ids=str)
def kind(request: pytest.FixtureRequest) -> Kind:
    """Each kind of device in turn."""
    kind: Kind = request.param
    return kind


@pytest.fixture(scope="session")
def newest_build(spapr_cell: Cell) -> QemuBuild:
    """The newest build that there is a package of, for machines to move to."""
    name = list(SOURCES)[-1]
    try:
        return spapr_cell.other_build(name)
    except (ConfigError, MirrorError) as error:
        # Nobody named this one: not in the cache, and not to be fetched.
        give_up(spapr_cell, Unavailable(f"no QEMU {name} to move to: {error}"))
    except SpaprError as error:
        give_up(spapr_cell, error)


@pytest.fixture
def told_refusal(contract: Contract, qemu_build: QemuBuild) -> ToldRefusal:
    """What is promised of a refusal that QEMU tells; a QEMU that is not told of it itself has none, and nothing to be tested."""

    def promised(device: Device, cause: str) -> Expectation:
        refusal = contract.refusal(device, cause=cause)
        if refusal.outcome is not Outcome.REFUSED:
            pytest.skip(f"{qemu_build.version_text} with this guest tells no refusal: {refusal.source}")
        return refusal

    return promised


@pytest.fixture
def survives(qemu_build: QemuBuild, spapr_accelerator: str) -> Callable[[str], None]:
    """Skip a test that waits in vain for a guest that a known defect hangs."""

    def check(name: str) -> None:
        defect = KNOWN_DEFECTS[name]
        if defect.applies(qemu_build, spapr_accelerator, None):
            pytest.skip(f"{defect.id}: {defect.summary}")

    return check


@pytest.fixture
def passthrough(qemu_build: QemuBuild) -> None:
    """Only builds that can have a device passed through without hardware."""
    if DRIVER not in qemu_build.devices:
        pytest.skip(f"{qemu_build.version_text} has no {DRIVER}: QEMU 10.1 and later have it")


@pytest.fixture
def host_device(spapr_cell: Cell) -> str:
    """The address of a PCI function of the host that may be passed through."""
    address = spapr_cell.settings.vfio_host.value
    if address is None:
        pytest.skip("no device of this host may be passed through: give one with --spapr-vfio-host=0000:01:00.0")
    return address
