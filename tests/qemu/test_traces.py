"""Verdicts rest on QEMU's trace events: a build that does not write them is no build to test with."""

from __future__ import annotations

import pytest

from pytest_spapr import LaunchMachine
from pytest_spapr.errors import BuildError


def test_a_qemu_that_writes_no_traces_is_refused(launch_machine: LaunchMachine) -> None:
    with pytest.raises(BuildError, match="--enable-trace-backends=log"):
        launch_machine(image=None, boot=False, qemu_args=("-trace", "-spapr_drc_*"))
