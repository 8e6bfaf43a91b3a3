"""What QEMU itself refuses, in its own words, with the proof that nothing changed. No guest runs here."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from pytest_spapr import PseriesMachine


@pytest.fixture
def machine(launch_machine: Callable[..., PseriesMachine]) -> PseriesMachine:
    """A machine at ``-S`` with two of four cores and two DIMM slots, without a guest."""
    return launch_machine(image=None, boot=False, cpus=2, max_cpus=4, slots=2)
