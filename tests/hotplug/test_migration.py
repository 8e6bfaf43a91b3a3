"""Unplug and migration."""

from __future__ import annotations

import os
import signal
import socket
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from pytest_spapr import (
    Contract,
    Deadline,
    Guest,
    Kind,
    LaunchMachine,
    MachineDied,
    MachineError,
    Outcome,
    PseriesMachine,
    QemuBuild,
)
from pytest_spapr.qemu.snapshot import migration_end

from .inventory import events_since
from .kinds import PHB_SLOWLY, SILENCE, plug, silenced
from .loads import in_background
from .moments import reset_into_firmware
from .tasks import keep_busy
from .xics import require_presented, stop_at_rest

# ``virtio-queue-size``.
_QUEUE = "exceeds allocated max"


@contextmanager
def migrating(machine: PseriesMachine) -> Iterator[None]:
    """Have the machine migrate inside the ``with`` block, to a destination that takes nothing; the migration is cancelled then."""
    machine.qmp.execute("migrate-set-capabilities", {"capabilities": [{"capability": "events", "state": True}]})
    ours, theirs = socket.socketpair()
    with ours:
        with theirs:
            machine.qmp.give(theirs.fileno(), "nowhere")
        machine.qmp.execute("migrate", {"uri": "fd:nowhere"})
        yield
        since = machine.timeline.mark()
        machine.qmp.execute("migrate_cancel")
    end = machine.timeline.wait(migration_end, since=since, deadline=Deadline(machine.budgets.qmp), what="the migration's end")
    assert end in ("cancelled", "failed")


@contextmanager
def moved_but_for(words: str) -> Iterator[None]:
    """Fail as a known defect does, by an assertion, where a move inside the ``with`` block ends with an error of these words."""
    try:
        yield
    except MachineError as error:
        assert words not in str(error), error
        raise


def qemus() -> set[int]:
    """Return the pids of our QEMUs, but for clones, whose memory is in a file: the next test's may be made, or dropped, at any moment."""
    found: set[int] = set()
    for children in Path("/proc/self/task").glob("*/children"):
        # A thread may end meanwhile.
        with suppress(FileNotFoundError, ProcessLookupError):
            found.update(pid for pid in map(int, children.read_text().split()) if is_qemu(pid))
    return found


def is_qemu(pid: int) -> bool:
    # It may end meanwhile, too.
    with suppress(FileNotFoundError, ProcessLookupError):
        line = Path(f"/proc/{pid}/cmdline").read_text()
        return "-nodefaults\0" in line and "memory-backend-file,id=ram," not in line
    return False


@PHB_SLOWLY
def test_nothing_goes_while_the_machine_migrates(machine: PseriesMachine, contract: Contract, kind: Kind) -> None:
    """C42, M04, P31: QEMU rejects the command, nothing is pending, and afterwards the device goes as ever."""
    device = plug(machine, kind)
    with migrating(machine):
        for _ in range(2):
            attempt = device.unplug()
            assert (attempt.outcome, attempt.asked, attempt.events) == (Outcome.REJECTED, False, ())
            assert attempt.reply == "device_del not allowed while migrating"
    assert device.configured
    assert not device.waiting
    assert device.unplug() == contract.removal(device)


@pytest.fixture
def moved(kind: Kind, survives: Callable[[str], None]) -> Kind:
    """A kind of device whose guest survives a move."""
    if kind is Kind.CORE:
        survives("tcg-smp-migration")
    return kind


class TestMove:
    """The machine goes on in another QEMU."""

    @PHB_SLOWLY
    def test_a_device_goes_with_the_machine(self, machine: PseriesMachine, guest: Guest, contract: Contract, moved: Kind) -> None:
        """C06, M04, M12: it is the guest's there as it was here, and can be removed."""
        device = plug(machine, moved)
        uptime = float(guest.read("/proc/uptime").split()[0])
        left, before = machine.process, qemus()
        machine.migrate()
        assert machine.process.pid != left.pid
        assert left.exit_status is not None
        assert qemus() - before == {machine.process.pid}
        assert device.configured
        assert not device.waiting
        # It is the same boot, and its time went on.
        assert float(guest.run("cat /proc/uptime").check().stdout.split()[0]) > uptime
        assert device.unplug() == contract.removal(device)

    def test_devices_are_used_there_and_survive_a_reboot(
        self, machine: PseriesMachine, guest: Guest, contract: Contract, survives: Callable[[str], None]
    ) -> None:
        """C06, C07, M04, M12: what went before the move stays away, load moves with the guest, sizes are right, then all is removed."""
        survives("tcg-smp-migration")
        core, gone, dimm = machine.cores.plug(), machine.cores.plug(), machine.dimms.plug()
        assert gone.unplug() == contract.removal(gone)
        total, cpus = guest.memory.total(), guest.cpus.present()
        guest.run("mount -t tmpfs tmpfs /mnt && dd if=/dev/zero of=/mnt/load bs=1M count=200 2>&1").check()
        with in_background(guest, "cat /mnt/load"):
            machine.migrate()
            assert guest.memory.total() == total
            assert guest.cpus.present() == cpus
            assert [memory["data"]["size"] for memory in machine.qmp.execute("query-memory-devices")] == [dimm.size << 20]
            assert dimm.unplug() == contract.removal(dimm)
        machine.reboot()
        assert not gone.configured
        assert core.unplug() == contract.removal(core)
        assert guest.cpus.online() == {0}

    @pytest.mark.spapr_defect("xive-tctx-instance")
    def test_a_core_that_is_not_the_next_one_moves(
        self, machine: PseriesMachine, contract: Contract, survives: Callable[[str], None]
    ) -> None:
        """C06, C07: of three cores the one in the middle has gone."""
        survives("tcg-smp-migration")
        with machine.paused():
            since = machine.timeline.mark()
            gone, core = (machine.cores.plug(wait=False) for _ in range(2))
            assert gone.unplug() == contract.unasked_removal(gone)
        core.await_configured(since)
        with moved_but_for("instance 'xive-tctx'"):
            machine.migrate()
        assert core.configured

    @PHB_SLOWLY
    def test_what_is_pending_travels(
        self, machine: PseriesMachine, guest: Guest, contract: Contract, survives: Callable[[str], None], moved: Kind
    ) -> None:
        """C42, P31: QEMU waits there, a repeat is answered as promised, and when the cause is gone the device goes, told once."""
        if moved is Kind.CORE:
            survives("tcg-pending-core-migration")
        device = plug(machine, moved)
        with silenced(machine, moved):
            attempt = device.unplug()
            assert attempt == contract.silence(device, cause=SILENCE[moved])
            since = machine.timeline.mark()
            machine.migrate()
            assert device.waiting
            assert device.unplug() == contract.repeat(device, after="migration")
        if moved is Kind.DIMM:
            guest.memory.remove(device.drcs[0])
        assert device.follow(attempt) == contract.after(device, what="migration")
        deleted = [event["data"] for event in events_since(machine, since, "DEVICE_DELETED")]
        assert [data["path"] for data in deleted if data.get("device") == device.id] == [device.qom_path]

    @PHB_SLOWLY
    def test_a_reset_removes_what_came_pending(self, machine: PseriesMachine, contract: Contract, moved: Kind) -> None:
        """C33, C42, P31."""
        device = plug(machine, moved)
        with silenced(machine, moved):
            attempt = device.unplug()
            machine.migrate()
            since = machine.timeline.mark()
            machine.reset(wait=False)
        machine.await_ready(since)
        assert device.follow(attempt) == contract.after(device, what="reset")

    def test_a_saved_machine_recovers_which_memory_is_left(
        self, machine: PseriesMachine, guest: Guest, contract: Contract, tmp_path: Path
    ) -> None:
        """C42: pending_dimm_unplugs is not saved, and no repeat makes it anew (spapr_recover_pending_dimm_state)."""
        dimm, state = machine.dimms.plug(), tmp_path / "state"
        with guest.memory.offline_refused():
            attempt = dimm.unplug()
        machine.migrate(through=state)
        # It has the guest's memory in it.
        assert stat.filemode(state.stat().st_mode) == "-rw-------"
        assert dimm.waiting
        guest.memory.remove(dimm.drcs[0])
        assert dimm.follow(attempt) == contract.after(dimm, what="migration")

    def test_what_qemu_chose_is_kept(self, machine: PseriesMachine, contract: Contract, tmp_path: Path) -> None:
        """X08: slots and addresses that are not the first free ones, functions of one slot, a card behind a PHB; moved, then saved."""
        first, second = machine.dimms.plug(), machine.dimms.plug(512)
        assert first.unplug() == contract.removal(first)
        phb = machine.phbs.plug()
        card = phb.pci.plug("virtio-rng-pci")
        functions = machine.pci.plug_functions("virtio-rng-pci")
        before = machine.qmp.execute("query-memory-devices")[0]["data"]
        for through in (None, tmp_path / "state"):
            machine.migrate(through=through)
            after = machine.qmp.execute("query-memory-devices")[0]["data"]
            assert {**before, "hotplugged": after["hotplugged"]} == after
            assert all(device.configured for device in (second, phb, card, *functions))
        third = machine.dimms.plug()
        for device in (third, second, card):
            assert device.unplug() == contract.removal(device)

    @pytest.mark.spapr(firmware="slof")
    @pytest.mark.spapr_slow
    def test_it_moves_while_its_firmware_runs(self, machine: PseriesMachine, contract: Contract) -> None:
        """X07: SLOF goes on there, with what came and what is pending; CAS grants it and shows the rest to the guest."""
        old = machine.dimms.plug()
        since = reset_into_firmware(machine)
        with machine.paused():
            attempt = old.unplug()
            assert attempt == contract.before_cas(old)
            new = [plug(machine, kind, wait=False) for kind in (Kind.CORE, Kind.PCI)]
            machine.migrate()
        machine.await_ready(since)
        if attempt.outcome is Outcome.PENDING:
            assert old.follow(attempt) == contract.after(old, what="CAS")
        assert all(device.configured for device in new)

    @pytest.mark.parametrize(
        "kind",
        [Kind.CORE, Kind.DIMM, *(pytest.param(kind, marks=pytest.mark.spapr_slow) for kind in (Kind.PCI, Kind.PHB))],
        ids=str,
    )
    def test_what_the_guest_has_not_heard_of_yet_is_taken_there(
        self, machine: PseriesMachine, guest: Guest, contract: Contract, moved: Kind, survives: Callable[[str], None]
    ) -> None:
        """C06, M04, P31, X08: QEMU's events travel (spapr_pending_events), and the connector's state of before."""
        if "XICS" in guest.read("/proc/interrupts"):
            survives("tcg-xics-migration")
        with machine.paused():
            since = machine.timeline.mark()
            device = plug(machine, moved, wait=False)
            machine.migrate()
        device.await_configured(since)
        assert device.unplug() == contract.removal(device)

    @pytest.mark.spapr(machine="pseries,ic-mode=xics")
    @pytest.mark.spapr_defect("tcg-xics-migration")
    def test_what_xics_has_presented_is_taken_there(self, machine: PseriesMachine) -> None:
        """M04: the interrupt that tells of a DIMM."""
        if machine.build.version < (8, 2):
            pytest.skip(
                "the guest's timers are set going again there before anything else (no decrementer travels): it would hang in that"
            )
        stop_at_rest(machine)
        since = machine.timeline.mark()
        dimm = machine.dimms.plug(wait=False)
        require_presented(machine)
        machine.migrate()
        machine.cont()
        # A guest that hangs cannot be asked.
        dimm.await_configured(since, Deadline(10))

    def test_a_paused_machine_stays_paused(self, machine: PseriesMachine, guest: Guest) -> None:
        """And a machine whose guest never ran moves too; see the next test."""
        with machine.paused():
            machine.migrate()
            assert machine.status() == "paused"
        assert guest.run("echo up").check().stdout == "up\n"

    def test_one_that_has_not_run_boots_there(self, launch_machine: LaunchMachine) -> None:
        """What was plugged in at ``-S`` is there from the start."""
        machine = launch_machine(boot=False)
        dimm = machine.dimms.plug()
        machine.migrate()
        machine.boot()
        assert dimm.configured

    def test_a_machine_that_cannot_move_goes_on(self, machine: PseriesMachine, guest: Guest) -> None:
        """What QMP never saw is told, no QEMU is left behind, and the machine runs."""
        machine.qmp.hmp("device_add virtio-rng-pci,id=stranger,bus=pci.0,addr=5")
        pid, before = machine.process.pid, qemus()
        with pytest.raises(MachineError, match=r"other devices: device stranger \(device here, absent there\)"):
            machine.migrate()
        assert (qemus() - before, machine.process.pid) == (set(), pid)
        assert guest.run("echo up").check().stdout == "up\n"

    def test_the_death_of_the_destination_is_the_machines(self, machine: PseriesMachine) -> None:
        """A wait ends with it, as ever."""
        machine.migrate()
        os.kill(machine.process.pid, signal.SIGKILL)
        with pytest.raises(MachineDied, match="SIGKILL"):
            machine.guest.run("sleep 100")


@pytest.mark.spapr(machine="pseries-7.2", cpu="power9_v2.0")
@pytest.mark.spapr_defect("virtio-queue-size")
class TestMoveToANewerQemu:
    """From an older QEMU to a newer one that has its machine type.

    A guest that goes on there is busy: one whose CPU idles may hang (``tcg-idle-cpu-migration``).
    """

    @pytest.fixture
    def newer(self, request: pytest.FixtureRequest, qemu_build: QemuBuild) -> QemuBuild:
        """The build to move to; the machine type of 7.2 is older than it."""
        newest: QemuBuild = request.getfixturevalue("newest_build")
        if "pseries-7.2" not in qemu_build.machines or qemu_build.version >= newest.version:
            pytest.skip(f"{qemu_build.version_text} has no pseries-7.2, or is none that a newer one could take over from")
        return newest

    def test_devices_and_what_is_pending_travel(
        self, newer: QemuBuild, machine: PseriesMachine, guest: Guest, contract: Contract, qemu_build: QemuBuild
    ) -> None:
        """C42, P31, X08: what the guest has is there as it was, what is pending completes, and the newer one's devices come and go."""
        dimm, card = machine.dimms.plug(512), machine.pci.plug("virtio-rng-pci")
        pending = machine.dimms.plug()
        keep_busy(guest)
        with guest.memory.offline_refused():
            attempt = pending.unplug()
            with moved_but_for(_QUEUE):
                machine.migrate(newer)
        version = machine.qmp.execute("query-version")["qemu"]
        assert (version["major"], version["minor"], version["micro"]) == newer.version
        assert pending.waiting
        guest.memory.remove(pending.drcs[0])
        assert pending.follow(attempt) == contract.after(pending, what="migration")
        for device in (dimm, card):
            assert device.configured
            assert device.unplug() == contract.removal(device)
        assert machine.dimms.plug().configured

    def test_a_core_that_is_pending_is_so_there(self, newer: QemuBuild, machine: PseriesMachine, contract: Contract) -> None:
        """C42, X08: asked for here. A guest that is to answer there may hang (``tcg-pending-core-migration``): a reset ends it."""
        core = machine.cores.plug()
        with machine.paused():
            attempt = core.unplug()
            with moved_but_for(_QUEUE):
                machine.migrate(newer)
            assert core.waiting
            since = machine.timeline.mark()
            machine.reset(wait=False)
        machine.await_ready(since)
        assert core.follow(attempt) == contract.after(core, what="reset")
