"""A clone can do what a booted guest can, and nobody can tell them apart by what they do."""

from __future__ import annotations

import re
import time
from dataclasses import replace
from pathlib import Path

import pytest

from pytest_spapr import Guest, Kind, LaunchMachine, Outcome, PseriesMachine
from pytest_spapr.deadline import Deadline
from pytest_spapr.errors import DeadlineExpired, MachineError
from pytest_spapr.qemu.snapshot import restore
from pytest_spapr.timeline import Lane

from ..hotplug.kinds import plug

#: Seconds: ``date`` has whole ones only, and the host is busy.
_CLOCK = 2.5
#: Seconds: a CPU that goes on answers in a hundredth of that.
_ANSWER = 15.0
_UUID = "/proc/sys/kernel/random/uuid"
_NOTE = "/tmp/note"


@pytest.fixture(params=["clone", "boot"])
def either(request: pytest.FixtureRequest, launch_machine: LaunchMachine) -> PseriesMachine:
    """A clone, then a machine that was booted."""
    return launch_machine(start=request.param)


def inventory(machine: PseriesMachine) -> dict[str, object]:
    """Return what there is in a machine, as QEMU and its guest see it."""
    guest = machine.guest
    listed = {
        "command line": "cat /proc/cmdline",
        "modules": "cut -d ' ' -f 1 /proc/modules",
        "mounts": "cat /proc/mounts",
        "addresses": "ip -4 -o address; ip -4 route",
        "device tree": "cd /proc/device-tree && find . -type d | sort",
        "interrupts": "awk '{print $NF}' /proc/interrupts | sort",
        "block size": "cat /sys/devices/system/memory/block_size_bytes",
    }
    found: dict[str, object] = {name: guest.run(command).check().stdout.split("\n") for name, command in listed.items()}
    # Sorted here: of a pipe's own processes ps sees those that have begun.
    found["services"] = {name for name in guest.run("ps -o comm").check().stdout.split() if not name.startswith("kworker")}
    found |= {"cpus": (guest.cpus.online(), guest.cpus.present()), "memory": guest.memory.blocks(), "pci": guest.pci.functions()}
    for query in ("query-hotpluggable-cpus", "query-memory-devices", "query-pci", "query-machines", "query-block"):
        found[query] = machine.qmp.execute(query)
    return found


def test_a_clone_has_all_that_a_booted_machine_has(launch_machine: LaunchMachine) -> None:
    clone, booted = (inventory(launch_machine(start=how)) for how in ("clone", "boot"))
    for name, value in booted.items():
        assert clone[name] == value, name


def test_its_timeline_begins_with_the_boot(launch_machine: LaunchMachine) -> None:
    machine = launch_machine(start="clone")
    before = [record for record in machine.timeline.since() if record.time < 0]
    assert {record.lane for record in before} == {Lane.CONSOLE, Lane.KERNEL, Lane.SERVICE}
    assert "init: ready" in {record.text for record in before}
    assert any("Linux version" in record.text for record in before)
    assert sorted(before, key=lambda record: record.time) == before


def test_the_guest_has_the_hosts_time(either: PseriesMachine) -> None:
    guest = either.guest
    assert abs(int(guest.run("date +%s").check().stdout) - time.time()) < _CLOCK
    uptime, began = _uptime(guest), time.monotonic()
    assert 0 < uptime < either.budgets.boot
    guest.run("usleep 300000").check()
    assert _uptime(guest) - uptime == pytest.approx(time.monotonic() - began, abs=0.5)
    assert abs(int(guest.run("date +%s").check().stdout) - time.time()) < _CLOCK


def test_guests_differ_in_what_is_random(launch_machine: LaunchMachine) -> None:
    """From the first process on that is asked: two clones have the same memory, the pool of random numbers included."""
    seen: list[tuple[str, ...]] = []
    for how in ("clone", "clone", "boot"):
        guest = launch_machine(start=how).guest
        done = guest.run(f"cat {_UUID}; head -c 16 /dev/urandom | md5sum; grep stack /proc/self/maps | cut -d ' ' -f 1")
        seen.append(tuple(done.check().stdout.splitlines()))
    for values in zip(*seen, strict=True):
        assert len(set(values)) == len(seen), values


def test_what_one_clone_writes_no_other_sees(launch_machine: LaunchMachine) -> None:
    one, two = launch_machine(start="clone"), launch_machine(start="clone")
    one.guest.run(f"echo one > {_NOTE}").check()
    assert two.guest.run(f"cat {_NOTE}").status != 0
    three = launch_machine(start="clone")
    assert three.guest.run(f"cat {_NOTE}").status != 0
    assert one.guest.read(_NOTE) == "one"


def test_the_network_is_its_own(launch_machine: LaunchMachine) -> None:
    machines = [launch_machine(start=how) for how in ("clone", "clone", "boot")]
    ports = {re.search(r"-p (\d+)", machine.guest.ssh_command())[1] for machine in machines}  # type: ignore[index]
    assert len(ports) == len(machines)
    for number, machine in enumerate(machines):
        machine.guest.run(f"hostname guest{number}").check()
    assert [machine.guest.run("hostname").stdout.strip() for machine in machines] == ["guest0", "guest1", "guest2"]


@pytest.mark.parametrize("kind", [Kind.CORE, Kind.DIMM, Kind.PCI], ids=str)
def test_devices_come_and_go(either: PseriesMachine, kind: Kind) -> None:
    device = plug(either, kind)
    assert device.configured
    assert device.unplug().outcome is Outcome.REMOVED
    assert not device.configured


def test_reset_and_reboot_make_a_new_guest_that_devices_can_be_plugged_into(either: PseriesMachine) -> None:
    guest = either.guest
    guest.run(f"echo old > {_NOTE}").check()
    either.reset()
    assert guest.run(f"cat {_NOTE}").status != 0
    core = either.cores.plug()
    assert core.unplug().outcome is Outcome.REMOVED
    guest.run(f"echo old > {_NOTE}").check()
    either.reboot()
    assert guest.run(f"cat {_NOTE}").status != 0


def migrate(source: PseriesMachine, launch_machine: LaunchMachine) -> PseriesMachine:
    """Return a machine of the same shape that goes on where this one is; all memory travels, for neither side shares it."""
    arguments = ["-incoming", "defer"]
    if any("memory-backend=ram" in word for word in source.process.argv):
        arguments += ["-object", f"memory-backend-ram,id=ram,size={source.spec.memory}M", "-machine", "memory-backend=ram"]
    target = launch_machine(boot=False, qemu_args=tuple(arguments))
    restore(target.qmp, target.timeline, source.save(), Deadline(target.budgets.boot))
    return target


def test_it_can_be_migrated(either: PseriesMachine, launch_machine: LaunchMachine) -> None:
    either.guest.run(f"echo travelled > {_NOTE}").check()
    uptime = _uptime(either.guest)
    target = migrate(either, launch_machine)
    target.wake()
    assert target.guest.read(_NOTE) == "travelled"
    assert _uptime(target.guest) >= uptime
    core = target.cores.plug()
    assert core.unplug().outcome is Outcome.REMOVED


@pytest.mark.spapr(cpus=2, start="boot")
@pytest.mark.spapr_defect("tcg-smp-migration")
def test_each_cpu_goes_on_after_a_migration(machine: PseriesMachine, launch_machine: LaunchMachine) -> None:
    machine.guest.rest()
    target = migrate(machine, launch_machine)
    target.budgets = replace(target.budgets, command=_ANSWER)
    try:
        target.wake()
        for cpu in range(2):
            assert target.guest.ask(f"taskset {1 << cpu:x} true").status == 0
    except DeadlineExpired as error:
        raise AssertionError(f"a CPU stands still: {error}") from error


@pytest.mark.spapr(cpus=2)
def test_timers_go_on_on_each_cpu(either: PseriesMachine) -> None:
    """QEMU 7.2 migrates no decrementer: the guest's timers would stand still until somebody programs it anew."""
    guest = either.guest
    for cpu in guest.cpus.online():
        before = _timer_interrupts(guest)[cpu]
        busy = "while :; do :; done & "
        guest.run(f"{busy * 2} usleep 200000; kill %1 %2").check()
        assert _timer_interrupts(guest)[cpu] - before > 10, cpu


def _timer_interrupts(guest: Guest) -> list[int]:
    return [int(number) for number in guest.run("grep 'timer event device' /proc/interrupts | head -n 1").stdout.split()[1:3]]


def _uptime(guest: Guest) -> float:
    return float(guest.read("/proc/uptime").split()[0])


def test_a_balloon_takes_nothing_from_other_clones(machine: PseriesMachine, guest: Guest) -> None:
    """They have their memory's file in common, into which QEMU would punch the holes (ram_block_discard_range)."""
    [ram] = {
        line.split()[-1] for line in Path(f"/proc/{machine.process.pid}/maps").read_text().splitlines() if line.endswith("/ram")
    }
    before = Path(ram).stat()
    if machine.shares_ram:
        with pytest.raises(MachineError, match="gives memory back to the host"):
            machine.pci.plug("virtio-balloon-pci")
        return
    guest.run("modprobe virtio_balloon").check()
    machine.pci.plug("virtio-balloon-pci")
    since = machine.timeline.mark()
    machine.qmp.execute("balloon", {"value": machine.qmp.execute("query-balloon")["actual"] - (64 << 20)})
    machine.await_records(lambda record: record.event == "BALLOON_CHANGE", 1, since, "the balloon to grow")
    machine.await_records(
        lambda record: record.lane is Lane.STDERR and "iscard" in record.text, 1, since, "QEMU to refuse a hole"
    )
    after = Path(ram).stat()
    assert (after.st_mtime_ns, after.st_blocks) == (before.st_mtime_ns, before.st_blocks)
