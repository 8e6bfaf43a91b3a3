"""Hooks that a conftest.py or another plugin may implement."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pytest_spapr.hotplug.attempt import Attempt
    from pytest_spapr.machine import Machine
    from pytest_spapr.qemu.argv import MachineSpec


@pytest.hookspec
def pytest_spapr_machine_args(spec: MachineSpec) -> list[str] | None:
    """Return QEMU arguments to add to those of a machine that is about to start."""


@pytest.hookspec
def pytest_spapr_machine_started(machine: Machine) -> None:
    """Called when a machine's guest has booted, or when its monitor answers if it has no guest."""


@pytest.hookspec
def pytest_spapr_unplug_finished(machine: Machine, attempt: Attempt) -> None:
    """Called in the test's thread when an unplug attempt has its outcome."""
