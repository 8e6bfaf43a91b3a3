"""Cores that the guest gives up."""

from __future__ import annotations

import pytest

from pytest_spapr import Contract, Guest, Outcome, PseriesMachine


def test_a_core_comes_and_goes(machine: PseriesMachine, guest: Guest, contract: Contract) -> None:
    """C01, C03: QEMU's and the guest's count follow, and the core's number can be used again."""
    assert guest.cpus.online() == {0}
    core = machine.cores.plug(1)
    assert core.guest_cpus() == {1}
    assert guest.cpus.online() == {0, 1}
    assert core.unplug() == contract.removal(core)
    assert guest.cpus.present() == {0}
    again = machine.cores.plug(1)
    assert again.configured


def test_a_core_survives_a_reboot_and_can_be_removed_after_it(machine: PseriesMachine, guest: Guest, contract: Contract) -> None:
    """C01, C03, C04."""
    core = machine.cores.plug()
    machine.reboot()
    assert guest.cpus.online() == {0, 1}
    assert core.unplug() == contract.removal(core)
    machine.reboot()
    assert guest.cpus.present() == {0}


def test_add_and_remove_take_effect_only_when_the_machine_runs(machine: PseriesMachine, guest: Guest, contract: Contract) -> None:
    """C08."""
    with machine.paused():
        since = machine.timeline.mark()
        core = machine.cores.plug(wait=False)
        assert not guest.usable
    core.await_configured(since)
    assert guest.cpus.online() == {0, 1}
    with machine.paused():
        attempt = core.unplug()
        assert attempt == contract.silence(core, cause="machine paused")
    assert core.follow(attempt) == contract.removal(core)
    assert guest.cpus.online() == {0}


@pytest.mark.parametrize("count", [1, 3])
def test_offline_cores_can_be_removed(machine: PseriesMachine, guest: Guest, contract: Contract, count: int) -> None:
    """C17: a core whose CPUs are offline already."""
    cores = [machine.cores.plug() for _ in range(count)]
    cpus = [cpu for core in cores for cpu in core.guest_cpus()]
    with guest.cpus.offline(*cpus):
        for core in cores:
            assert core.unplug() == contract.removal(core)
    assert guest.cpus.present() == {0}


def test_plug_and_unplug_at_once_never_reaches_the_guest(machine: PseriesMachine, guest: Guest, contract: Contract) -> None:
    """C41: QEMU frees a core that the guest has not configured yet, without asking."""
    with machine.paused():
        core = machine.cores.plug(wait=False)
        attempt = core.unplug()
    assert attempt == contract.unasked_removal(core)
    guest.settle()
    assert guest.cpus.present() == {0}
    assert machine.cores.plug().unplug().outcome is Outcome.REMOVED


@pytest.mark.spapr(max_cpus=2)
@pytest.mark.spapr_defect("tcg-contexts-run-out")
def test_a_slot_can_be_used_again_and_again(machine: PseriesMachine, contract: Contract) -> None:
    """C27: more cores in turn than the machine has slots."""
    for _ in range(2):
        core = machine.cores.plug(1)
        assert core.unplug() == contract.removal(core)
