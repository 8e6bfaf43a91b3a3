"""Cores that the guest gives up."""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import nullcontext

import pytest

from pytest_spapr import Contract, Deadline, Guest, Outcome, PseriesMachine, Record
from pytest_spapr.guest.kernel_log import CORE_ADDED, says
from pytest_spapr.hotplug.drc import AWAITING, traced, traced_state

from .inventory import events_since


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


def test_the_cpus_of_a_core_go_offline_and_come_back(machine: PseriesMachine, guest: Guest, contract: Contract) -> None:
    """C09: the guest's count follows, QEMU's does not, and the core can go whatever its CPUs were through."""
    cores = [machine.cores.plug() for _ in range(2)]
    with guest.cpus.offline(1, 2):
        assert guest.cpus.online() == {0}
        assert guest.cpus.present() == {0, 1, 2}
        guest.cpus.set_online(2, True)
        assert guest.cpus.online() == {0, 2}
        assert len(machine.qmp.execute("query-cpus-fast")) == 3
    assert guest.cpus.online() == {0, 1, 2}
    for core in cores:
        assert core.unplug() == contract.removal(core)


WHEN = ["at once", "after a reboot", "after a migration", "after a pause", "while paused"]


@pytest.mark.spapr(cpus=2)
@pytest.mark.parametrize("when", WHEN)
def test_a_core_of_the_command_line_goes(
    machine: PseriesMachine, guest: Guest, contract: Contract, survives: Callable[[str], None], when: str
) -> None:
    """C12: QEMU names it by its path alone; its number can be used again."""
    core = machine.cores.boot_core(1)
    if when == "after a reboot":
        machine.reboot()
    elif when == "after a migration":
        survives("tcg-smp-migration")
        machine.migrate()
    with machine.paused() if "pause" in when else nullcontext():
        attempt = core.unplug() if when == "while paused" else None
    assert (core.follow(attempt) if attempt else core.unplug()) == contract.removal(core)
    assert guest.cpus.present() == {0}
    assert machine.cores.plug(1).configured


#: What a core goes through when it comes, as QEMU's connector and the guest's kernel tell it.
MOMENTS = ["set_allocation_state usable", "set_isolation_state unisolate", "set_configured", CORE_ADDED.pattern]


@pytest.mark.parametrize("moment", MOMENTS, ids=["usable", "unisolated", "configured", "added"])
def test_a_core_goes_while_the_guest_takes_it(machine: PseriesMachine, guest: Guest, contract: Contract, moment: str) -> None:
    """C41: asked for before the guest is done, or just then. It takes it to the end and then gives it back; it is told once."""
    since = machine.timeline.mark()
    core = machine.cores.plug(wait=False)
    (index,) = core.drcs

    def reached(record: Record) -> bool | None:
        return True if traced_state(record, index) == moment or says(record, re.compile(moment)) else None

    machine.timeline.wait(reached, since=since, deadline=Deadline(machine.budgets.plug), what=f"{moment} of {core.id}")
    attempt = core.unplug()
    assert attempt == contract.removal(core)
    records = machine.timeline.since(since)
    asked = next(record.seq for record in records if traced(record, AWAITING) == index)
    added = next(record.seq for record in records if says(record, CORE_ADDED))
    # The guest takes some 0.3 s (TCG) from the connector's last state to its own word.
    assert (asked > added) == (moment == CORE_ADDED.pattern)
    assert len([event for event in events_since(machine, since, "DEVICE_DELETED") if event["data"].get("device") == core.id]) == 1
    assert guest.cpus.present() == {0}
    assert machine.cores.plug(core.core_id).unplug() == contract.removal(core)


@pytest.mark.spapr(max_cpus=2)
@pytest.mark.spapr_defect("tcg-contexts-run-out")
def test_a_slot_can_be_used_again_and_again(machine: PseriesMachine, contract: Contract) -> None:
    """C27: more cores in turn than the machine has slots."""
    for _ in range(2):
        core = machine.cores.plug(1)
        assert core.unplug() == contract.removal(core)
