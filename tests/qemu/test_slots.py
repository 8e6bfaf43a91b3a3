"""Slots and functions of a PHB that are taken: an error, and no more."""

from __future__ import annotations

import pytest

from pytest_spapr import LaunchMachine, QmpRefused


@pytest.mark.spapr_defect("pci-slot-31")
def test_a_slot_is_found_where_the_last_one_is_taken(launch_machine: LaunchMachine) -> None:
    machine = launch_machine(image=None, boot=False, qemu_args=("-device", "virtio-rng-pci,bus=pci.0,addr=1f.0"))
    assert machine.qmp.hmp("device_add virtio-rng-pci,id=card1,bus=pci.0") == ""


@pytest.mark.spapr_defect("pci-function-taken")
@pytest.mark.parametrize("functions", [(1, 0), (1,)], ids=["beside function 0", "without function 0"])
def test_a_function_that_is_taken_is_refused(launch_machine: LaunchMachine, functions: tuple[int, ...]) -> None:
    machine = launch_machine(image=None, boot=False)
    for function in functions:
        machine.pci.plug("virtio-rng-pci", slot=5, function=function, multifunction=True)
    with pytest.raises(QmpRefused):
        machine.pci.plug("virtio-rng-pci", slot=5, function=1, multifunction=True)
