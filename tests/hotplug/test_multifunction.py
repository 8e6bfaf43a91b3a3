"""Multifunction PCI devices: QEMU announces the functions of a slot together, with function 0."""

from __future__ import annotations

import pytest

from pytest_spapr import Contract, Guest, Lane, LaunchMachine, Presence, PseriesMachine, QmpRefused

from .inventory import nothing_changes, told


@pytest.mark.parametrize("functions", [2, pytest.param(4, marks=pytest.mark.spapr_slow)])
def test_function_0_takes_the_others_with_it(machine: PseriesMachine, guest: Guest, contract: Contract, functions: int) -> None:
    """P13, P27: one device_del, and an event for each function, also for those that nobody asked for; function 0's is the last."""
    devices = machine.pci.plug_functions("virtio-rng-pci", functions)
    addresses = {device.address for device in devices}
    assert guest.pci.functions().keys() >= addresses
    attempt = devices[0].unplug()
    assert attempt == contract.removal(devices[0])
    gone = told(machine, attempt.began)
    assert sorted(gone) == sorted(device.id for device in devices)
    assert gone[-1] == devices[0].id
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


@pytest.mark.spapr_slow
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


@pytest.mark.spapr_slow
def test_all_eight_functions_go_by_a_reset(launch_machine: LaunchMachine, contract: Contract) -> None:
    """P13: there from the boot, asked for by one command, silent together, and gone together."""
    machine = launch_machine(boot=False)
    devices = machine.pci.plug_functions("virtio-rng-pci", 8)
    machine.boot()
    assert all(device.configured for device in devices)
    with machine.guest.rtas_errd.killed():
        attempt = devices[0].unplug()
        assert attempt == contract.silence(devices[0], cause="rtas_errd absent")
        assert [device.unplug() for device in devices] == [contract.repeat(device) for device in devices]
        since = machine.timeline.mark()
        machine.reset(wait=False)
    machine.await_ready(since)
    assert devices[0].follow(attempt) == contract.after(devices[0], what="reset")
    assert sorted(told(machine, since)) == sorted(device.id for device in devices)
    assert not any(device.configured for device in devices)


@pytest.mark.spapr_slow
def test_all_eight_functions_come_and_go(machine: PseriesMachine, contract: Contract) -> None:
    """P13, P27: a drmgr for each, one after another."""
    for _ in range(2):
        devices = machine.pci.plug_functions("virtio-rng-pci", 8, slot=7)
        assert devices[0].unplug(seconds=300) == contract.removal(devices[0])
        assert all(device.views().qemu is Presence.ABSENT for device in devices)


@pytest.mark.parametrize("slots", [4, pytest.param(30, marks=pytest.mark.spapr_slow)])
def test_all_functions_of_many_slots(launch_machine: LaunchMachine, contract: Contract, slots: int) -> None:
    """P13: QEMU alone: each has a connector of its own, and each goes; function 0 takes the others of its slot, and no other slot's."""
    machine = launch_machine(image=None, boot=False)
    filled = [machine.pci.plug_functions("virtio-rng-pci", 8, slot=slot) for slot in range(1, slots + 1)]
    devices = [device for functions in filled for device in functions]
    assert len({device.drcs for device in devices}) == 8 * slots
    for functions in filled:
        attempt = functions[0].unplug()
        assert attempt == contract.before_boot(functions[0])
    children = {child["name"] for child in machine.qmp.execute("qom-list", {"path": "/machine/peripheral"})}
    assert not children & {device.id for device in devices}
