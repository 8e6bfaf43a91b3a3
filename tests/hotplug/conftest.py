"""Fixtures of the suite."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from pytest_spapr import Contract, Kind, Outcome, QemuBuild
from pytest_spapr.hotplug.device import Device
from pytest_spapr.hotplug.expectation import Expectation

from .kinds import KINDS

ToldRefusal = Callable[[Device, str], Expectation]


@pytest.fixture(params=KINDS, ids=str)
def kind(request: pytest.FixtureRequest) -> Kind:
    """Each kind of device in turn."""
    kind: Kind = request.param
    return kind


@pytest.fixture
def told_refusal(contract: Contract, qemu_build: QemuBuild) -> ToldRefusal:
    """What is promised of a refusal that QEMU tells; a QEMU that is not told of it itself has none, and nothing to be tested."""

    def promised(device: Device, cause: str) -> Expectation:
        refusal = contract.refusal(device, cause=cause)
        if refusal.outcome is not Outcome.REFUSED:
            pytest.skip(f"{qemu_build.version_text} with this guest tells no refusal: {refusal.source}")
        return refusal

    return promised
