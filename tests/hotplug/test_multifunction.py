"""Multifunction PCI devices: QEMU announces the functions of a slot together, with function 0."""

from __future__ import annotations

import pytest

from pytest_spapr import Contract, Guest, Lane, Presence, PseriesMachine, QmpRefused

from .inventory import events_since, nothing_changes


@pytest.mark.parametrize("functions", [2, 4])
def test_function_0_takes_the_others_with_it(machine: PseriesMachine, guest: Guest, contract: Contract, functions: int) -> None:
    """P27: one device_del, and an event for each function, also for those that nobody asked for; function 0's is the last."""
    devices = machine.pci.plug_functions("virtio-rng-pci", functions)
    addresses = {device.address for device in devices}
    assert guest.pci.functions().keys() >= addresses
    attempt = devices[0].unplug()
    assert attempt == contract.removal(devices[0])
    deleted = [event["data"].get("device") for event in events_since(machine, attempt.began, "DEVICE_DELETED")]
    told = [device for device in deleted if device]
    assert sorted(told) == sorted(device.id for device in devices)
    assert told[-1] == devices[0].id
    assert all(device.views().qemu is Presence.ABSENT for device in devices)
    assert not guest.pci.functions().keys() & addresses


def test_another_function_waits_for_function_0(machine: PseriesMachine, contract: Contract) -> None:
    """P27: the guest is not even told, so that nothing can come of it until function 0 goes too."""
    zero, one = machine.pci.plug_functions("virtio-rng-pci")
    attempt = one.unplug()
    assert attempt == contract.silence(one, cause="function 0 stays")
    assert one.unplug() == contract.repeat(one)
    assert zero.unplug() == contract.removal(zero)
    assert one.follow(attempt) == contract.removal(one)


def test_a_reset_removes_the_function_that_waits_and_no_other(machine: PseriesMachine, contract: Contract) -> None:
    """P22, P27."""
    zero, one = machine.pci.plug_functions("virtio-rng-pci")
    attempt = one.unplug()
    assert attempt == contract.silence(one, cause="function 0 stays")
    machine.reset()
    assert one.follow(attempt) == contract.after(one, what="reset")
    assert zero.configured
    assert zero.views().qemu is Presence.PRESENT


def test_all_functions_are_silent_together(machine: PseriesMachine, guest: Guest, contract: Contract) -> None:
    """P25, P27: without rtas_errd the request for function 0 makes all of them pending: a repeat is rejected for each."""
    zero, one = machine.pci.plug_functions("virtio-rng-pci")
    with guest.rtas_errd.killed():
        attempt = zero.unplug()
        assert attempt == contract.silence(zero, cause="rtas_errd absent")
        for device in (zero, one):
            assert device.unplug() == contract.repeat(device)
    assert zero.follow(attempt) == contract.removal(zero)
    assert one.views().qemu is Presence.ABSENT


def test_a_function_that_was_never_announced_is_removed_at_once(
    machine: PseriesMachine, guest: Guest, contract: Contract
) -> None:
    """P27: QEMU f40eb921da78."""
    one = machine.pci.plug("virtio-rng-pci", slot=7, function=1, multifunction=True)
    assert not one.configured
    assert one.unplug() == contract.unasked_removal(one)


def test_function_0_comes_last(machine: PseriesMachine) -> None:
    """P27."""
    machine.pci.plug("virtio-rng-pci", slot=7, multifunction=True)
    words = "PCI: slot 7 function 0 already occup[a-z]+ by virtio-rng-pci"
    with nothing_changes(machine), pytest.raises(QmpRefused, match=words):
        machine.pci.plug("virtio-rng-pci", slot=7, function=1)
    assert not any("slot 7" in record.text for record in machine.timeline.since(0, Lane.STDERR))
