"""Machines whose cores have several threads."""

from __future__ import annotations

from typing import Any

import pytest

from pytest_spapr import LaunchFailed, LaunchMachine, PseriesMachine

_ONE_THREAD = "TCG cannot support more than 1 thread/core"


def start_with_threads(launch_machine: LaunchMachine, **shape: Any) -> PseriesMachine:
    """Start a machine whose cores may have several threads; skip the test where QEMU cannot have them, as it says itself."""
    try:
        return launch_machine(**shape)
    except LaunchFailed as error:
        if said := next((line for line in error.stderr if _ONE_THREAD in line), None):
            pytest.skip(said)
        raise
