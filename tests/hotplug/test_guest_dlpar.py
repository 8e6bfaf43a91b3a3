"""The guest gives up devices, and takes them again, of its own accord: with drmgr, and through ``/sys/kernel/dlpar``.

QEMU lets it: the connector goes through its states, no event is sent, and the device stays. A ``device_del`` that comes later finds the
connector empty and has nothing to ask.
"""

from __future__ import annotations

import pytest

from pytest_spapr import Contract, Guest, Kind, Presence, PseriesMachine
from pytest_spapr.errors import CommandFailed
from pytest_spapr.guest.memory import LMB
from pytest_spapr.hotplug.attempt import Views
from pytest_spapr.hotplug.device import NotConfigured

from .dlpar import GIVEN_UP, TAKEN, ask_kernel, await_driven
from .inventory import nothing_changes

ONLY_QEMU = Views(Presence.PRESENT, Presence.ABSENT)

BY_KERNEL = {
    "remove": "echo 'cpu remove index {drc:#x}' > /sys/kernel/dlpar",
    "add": "echo 'cpu add index {drc:#x}' > /sys/kernel/dlpar",
}
BY_DRMGR = {"remove": "drmgr -c cpu -r -s {drc:#x}", "add": "drmgr -c cpu -a -s {drc:#x}"}
# How many, not which: drmgr takes the last core, and comes to it again over all connectors that have none.
BY_COUNT = {"remove": "drmgr -c cpu -r -q 1", "add": "drmgr -c cpu -a -q 1"}


@pytest.mark.parametrize("tool", [BY_KERNEL, BY_DRMGR, BY_COUNT], ids=["kernel", "drmgr", "drmgr count"])
def test_a_core_goes_and_comes_by_the_guests_own_will(
    machine: PseriesMachine, guest: Guest, contract: Contract, tool: dict[str, str]
) -> None:
    """C32: and what the guest took offline stays offline meanwhile, as it does when QEMU takes the core for good."""
    offline, core = machine.cores.plug(), machine.cores.plug()
    (number,) = offline.guest_cpus()
    with guest.cpus.offline(number), nothing_changes(machine):
        since = machine.timeline.mark()
        guest.run(tool["remove"].format(drc=core.drcs[0])).check()
        assert await_driven(machine, since, core.drcs[0], 2) == GIVEN_UP[core.kind]
        assert core.views() == ONLY_QEMU
        assert core.waiting is False
        since = machine.timeline.mark()
        guest.run(tool["add"].format(drc=core.drcs[0])).check()
        assert await_driven(machine, since, core.drcs[0], 3) == TAKEN[core.kind]
        assert core.configured
        assert number not in guest.cpus.online()
    with guest.cpus.offline(number):
        assert core.unplug() == contract.removal(core)
        assert number not in guest.cpus.online()


def test_a_core_that_the_guest_gave_up_is_removed_without_asking_it(
    machine: PseriesMachine, guest: Guest, contract: Contract
) -> None:
    """C32: and then the guest cannot have it back."""
    core = machine.cores.plug()
    ask_kernel(guest, f"cpu remove index {core.drcs[0]:#x}").check()
    assert core.unplug() == contract.unasked_removal(core)
    assert ask_kernel(guest, f"cpu add index {core.drcs[0]:#x}").status != 0
    assert guest.cpus.present() == {0}


def test_the_guest_may_give_up_the_boot_core(machine: PseriesMachine, guest: Guest, contract: Contract) -> None:
    """C32, C38: QEMU protects it from ``device_del`` only, also while the guest does without it. With a reset it is back."""
    core, other = machine.cores.boot_core(), machine.cores.plug()
    ask_kernel(guest, f"cpu remove index {core.drcs[0]:#x}").check()
    assert core.views() == ONLY_QEMU
    assert guest.cpus.online() == other.guest_cpus()
    rejected = core.unplug()
    assert rejected.reply == contract.rejection(core, cause="boot core").reply
    assert ask_kernel(guest, f"cpu add index {core.drcs[0]:#x}").check()
    assert core.unplug() == contract.rejection(core, cause="boot core")


def test_the_guest_keeps_its_last_cpu_from_itself(machine: PseriesMachine, guest: Guest) -> None:
    """C32, C34: QEMU hears that the core is kept, which it had not asked for."""
    core = machine.cores.plug()
    with guest.cpus.offline(0), nothing_changes(machine):
        assert ask_kernel(guest, f"cpu remove index {core.drcs[0]:#x}").status != 0
        assert core.configured


def test_an_lmb_that_the_guest_gives_up_unasked_stays_qemus(machine: PseriesMachine, guest: Guest) -> None:
    """M29, M36: QEMU refuses to isolate it, and Linux drops it all the same."""
    dimm = machine.dimms.plug(512)
    total, taken = guest.memory.total(), dimm.drcs[1]
    with nothing_changes(machine):
        since = machine.timeline.mark()
        guest.memory.remove(taken)
        assert await_driven(machine, since, taken, 1) == GIVEN_UP[dimm.kind]
        assert dimm.views() == Views(Presence.PRESENT, Presence.PARTIAL)
        assert guest.memory.total() == total - LMB


@pytest.mark.spapr_defect("lmb-lost-by-guest")
def test_an_lmb_that_the_guest_gave_up_can_be_had_back(machine: PseriesMachine, guest: Guest) -> None:
    """M29, M36: as a core can."""
    dimm = machine.dimms.plug()
    guest.memory.remove(dimm.drcs[0])
    assert ask_kernel(guest, f"memory add index {dimm.drcs[0]:#x}").status == 0
    assert dimm.configured


def test_a_dimm_that_lacks_an_lmb_is_pending_until_a_reset(machine: PseriesMachine, guest: Guest, contract: Contract) -> None:
    """M36: the guest gives up all that it has of the DIMM, and QEMU waits for the LMB that it had given up before."""
    dimm = machine.dimms.plug(512)
    kept, taken = dimm.drcs
    guest.memory.remove(taken)
    since = machine.timeline.mark()
    attempt = dimm.unplug(seconds=1)
    assert await_driven(machine, since, kept, 2) == GIVEN_UP[Kind.CORE]
    guest.settle()
    assert dimm.waiting is True
    assert dimm.views() == ONLY_QEMU
    machine.reset()
    assert dimm.follow(attempt) == contract.after(dimm, what="reset")


# drmgr begins at the last LMB, the kernel at the first.
COUNTS = {"drmgr": ("drmgr -c mem -r -q 1 -w 30", 1), "kernel": ("echo 'memory remove count 1' > /sys/kernel/dlpar", 0)}


@pytest.mark.parametrize(("request_", "hit"), COUNTS.values(), ids=COUNTS)
def test_a_number_of_lmbs_is_taken_from_any_dimm(
    machine: PseriesMachine, guest: Guest, contract: Contract, request_: str, hit: int
) -> None:
    """M29, M36: also while another one is pending, whose LMB can be given up by name."""
    dimms = [machine.dimms.plug() for _ in range(2)]
    other, pending = dimms[hit], dimms[1 - hit]
    with guest.memory.offline_refused():
        attempt = pending.unplug()
        assert attempt == contract.silence(pending, cause="first LMB refused")
    with nothing_changes(machine):
        since = machine.timeline.mark()
        guest.run(request_).check()
        assert await_driven(machine, since, other.drcs[0], 1) == GIVEN_UP[other.kind]
        assert other.views() == ONLY_QEMU
        assert pending.configured
        assert pending.waiting is True
        # One is left that is not there from the start; what cannot be done in full is not done at all.
        assert ask_kernel(guest, "memory remove count 2").status != 0
        assert pending.configured
    guest.memory.remove(pending.drcs[0])
    assert pending.follow(attempt) == contract.removal(pending)


def test_a_card_goes_and_comes_by_the_guests_own_will(machine: PseriesMachine, guest: Guest) -> None:
    """P21."""
    card = machine.pci.plug("virtio-rng-pci")
    with nothing_changes(machine):
        since = machine.timeline.mark()
        guest.drmgr.remove(card.drcs[0])
        assert await_driven(machine, since, card.drcs[0], 1) == GIVEN_UP[card.kind]
        assert card.views() == ONLY_QEMU
        since = machine.timeline.mark()
        guest.run(f"drmgr -c pci -a -s {card.drcs[0]:#x} -n -V").check()
        assert await_driven(machine, since, card.drcs[0], 3) == TAKEN[card.kind]
        assert card.configured


def test_a_card_that_the_guest_gave_up_is_removed_without_asking_it(
    machine: PseriesMachine, guest: Guest, contract: Contract
) -> None:
    """P21."""
    card = machine.pci.plug("virtio-rng-pci")
    guest.drmgr.remove(card.drcs[0])
    assert card.unplug() == contract.unasked_removal(card)


@pytest.mark.spapr_slow
def test_a_phb_goes_and_comes_by_the_guests_own_will(machine: PseriesMachine, guest: Guest) -> None:
    """P21."""
    phb = machine.phbs.plug()
    with nothing_changes(machine):
        since = machine.timeline.mark()
        guest.drmgr.remove_phb(phb.drcs[0])
        assert await_driven(machine, since, phb.drcs[0], 2) == GIVEN_UP[phb.kind]
        assert phb.views() == ONLY_QEMU
        since = machine.timeline.mark()
        guest.run(f"drmgr -c phb -a -s {phb.drcs[0]:#x}").check()
        assert await_driven(machine, since, phb.drcs[0], 3) == TAKEN[phb.kind]
        assert phb.configured


def test_a_block_whose_offlining_is_refused_stays_online(machine: PseriesMachine, guest: Guest, contract: Contract) -> None:
    """M30: and goes offline once its notifier lets it."""
    dimm = machine.dimms.plug()
    (block,) = dimm.blocks
    with guest.memory.offline_refused():
        # What dash says instead, of any error.
        with pytest.raises(CommandFailed, match=r"Cannot allocate memory|I/O error"):
            guest.memory.set_online(block, False)
        assert dimm.configured
    guest.memory.set_online(block, False)
    assert dimm.unplug() == contract.removal(dimm)


# One process that fills and drops a page cache, and one that burns CPU time.
LOAD = """touch /tmp/loading
{ while test -e /tmp/loading; do dd if=/dev/zero of=/tmp/load bs=1M count=96; done > /dev/null 2>&1; rm /tmp/load; } &
while test -e /tmp/loading; do :; done &"""
UNLOAD = "rm /tmp/loading; while test -e /tmp/load; do usleep 20000; done"


@pytest.mark.parametrize("rounds", [5, pytest.param(200, marks=pytest.mark.spapr_slow)])
def test_blocks_go_offline_and_come_back_under_load(
    machine: PseriesMachine, guest: Guest, contract: Contract, rounds: int
) -> None:
    """M29: or stay, if the kernel cannot empty them just now; they are what their state says, and the DIMM goes afterwards."""
    dimm = machine.dimms.plug(512)
    guest.ask(LOAD).check()
    went = 0
    for block in dimm.blocks * rounds:
        try:
            guest.memory.set_online(block, False)
        except CommandFailed as busy:
            assert "Device or resource busy" in str(busy)
            assert guest.memory.blocks()[block] == "online"
        else:
            went += 1
            assert guest.memory.blocks()[block] == "offline"
            guest.memory.set_online(block, True)
    assert went
    guest.ask(UNLOAD).check()
    assert dimm.configured
    assert dimm.unplug() == contract.removal(dimm)


@pytest.mark.spapr(kernel_args="memory_hotplug.memmap_on_memory=1")
def test_a_dimm_that_holds_its_own_memory_map_goes(machine: PseriesMachine, guest: Guest, contract: Contract) -> None:
    """M29: what the guest gains is less by the map, 64 bytes for each page."""
    parameter = "/sys/module/memory_hotplug/parameters/memmap_on_memory"
    if guest.run(f"grep -qs Y {parameter}").status != 0:
        pytest.skip(f"Linux {guest.kernel_release} keeps no memory map on hot-plugged memory (pseries: 6.6 and later)")
    total = guest.memory.total()
    dimm = machine.dimms.plug(512)
    pages = 2 * LMB // (1024 * int(guest.run("grep -m 1 KernelPageSize /proc/self/smaps").check().stdout.split()[1]))
    assert guest.memory.total() == total + 2 * LMB - 64 * pages
    for online in (False, True):
        for block in dimm.blocks:
            guest.memory.set_online(block, online)
    assert dimm.unplug() == contract.removal(dimm)
    assert guest.memory.total() == total


@pytest.mark.spapr(kernel_args="lockdown=confidentiality")
@pytest.mark.spapr_slow
def test_a_locked_down_kernel_keeps_cards_away_and_nothing_else(
    machine: PseriesMachine, guest: Guest, contract: Contract
) -> None:
    """P21: librtas needs /dev/mem to configure a connector. What the kernel does itself works as ever, a core's and a DIMM's part."""
    with pytest.raises(NotConfigured, match="drmgr: end 255"):
        machine.pci.plug("virtio-rng-pci", device_id="card")
    assert "card" in {child["name"] for child in machine.qmp.execute("qom-list", {"path": "/machine/peripheral"})}
    for device in (machine.dimms.plug(), machine.cores.plug()):
        assert device.unplug() == contract.removal(device)
