"""Machines that are as old as their type."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from pytest_spapr import PseriesMachine, QemuBuild


def old_machine(launch_machine: Callable[..., PseriesMachine], build: QemuBuild, name: str, **shape: Any) -> PseriesMachine:
    """Launch a machine of an old type at ``-S``; skip the test where the build has it no more."""
    if name not in build.machines:
        pytest.skip(f"{build.version_text} has no machine type {name} any more")
    # TCG has no transactional memory, which a machine so old asks for.
    arguments = ("-machine", "cap-htm=off", *shape.pop("qemu_args", ()))
    return launch_machine(image=None, boot=False, machine=name, cpu="power8", qemu_args=arguments, **shape)
