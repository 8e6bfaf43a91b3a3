"""The judge, over a machine whose records are scripted: each outcome, each cause of silence, each way to end."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import pytest

from pytest_spapr.errors import MachineDied, QmpRefused
from pytest_spapr.guest.services import ErrdState, LockHolder
from pytest_spapr.hotplug.attempt import Attempt, Views
from pytest_spapr.hotplug.evidence import Clue
from pytest_spapr.hotplug.judge import Judge, Unpluggable
from pytest_spapr.hotplug.outcome import Kind, Outcome, Presence, Silence
from pytest_spapr.machine import Machine
from pytest_spapr.timeline import Lane, Record, Timeline

DRC = 0x10000001
Script = Callable[["ScriptedMachine"], None]


class ScriptedMachine:
    """A machine that does, when ``device_del`` or a barrier comes, what its script says."""

    def __init__(self, on_delete: Script, on_settle: Script = lambda _: None) -> None:
        self.timeline = Timeline()
        self.on_delete = on_delete
        self.errd = ErrdState.RUNNING
        self.lock: LockHolder | None = None
        self.qmp = SimpleNamespace(execute=self.execute)
        self.guest = SimpleNamespace(
            settle=lambda: on_settle(self),
            rtas_errd=SimpleNamespace(state=lambda: self.errd),
            drmgr=SimpleNamespace(lock_holder=lambda: self.lock),
        )
        self.has_guest = True
        self.state = "running"
        self.pending = False

    @property
    def running(self) -> bool:
        return self.status() == "running"

    def status(self) -> str:
        if self.timeline.ended is not None:
            raise self.timeline.ended
        return self.state

    def execute(self, command: str, _: object = None) -> dict[str, Any]:
        if command == "device_del":
            self.on_delete(self)
        if self.timeline.ended is not None:
            raise self.timeline.ended
        return {}

    def event(self, name: str, device: str | None = "core1", path: str = "/machine/peripheral/core1") -> None:
        data = {"path": path} if device is None else {"device": device, "path": path}
        self.timeline.record(Lane.EVENT, name, {"event": name, "data": data})

    def awaiting(self) -> None:
        self.timeline.record(Lane.DRC, "awaiting", {"event": "spapr_drc_awaiting_quiesce", "drc": DRC})

    def kernel(self, text: str) -> None:
        self.timeline.record(Lane.KERNEL, text)


def clue(record: Record) -> Clue | None:
    return {"began": Clue.BEGAN, "failed": Clue.FAILED}.get(record.text) if record.lane is Lane.KERNEL else None


def judge(machine: ScriptedMachine, kind: Kind = Kind.CORE, seconds: float = 2.0) -> Judge:
    device = SimpleNamespace(
        id="core1",
        kind=kind,
        drcs=(DRC,),
        unplug_clue=clue,
        unannounced=lambda since: None,
        views=lambda: Views(Presence.PRESENT, Presence.UNKNOWN),
    )
    return Judge(cast("Unpluggable", device), cast("Machine", machine), pending=machine.pending, seconds=seconds)


def attempt(on_delete: Script, on_settle: Script = lambda _: None, **options: Any) -> Attempt:
    return judge(ScriptedMachine(on_delete, on_settle), **options).attempt()


def test_removed_when_the_guest_gave_it_up() -> None:
    def script(machine: ScriptedMachine) -> None:
        machine.awaiting()
        machine.kernel("began")
        machine.event("DEVICE_DELETED", device=None, path="/machine/peripheral/core1/thread[0]")
        machine.event("DEVICE_DELETED")

    done = attempt(script)
    assert (done.outcome, done.asked, done.event_names) == (Outcome.REMOVED, True, ("DEVICE_DELETED",))


def test_removed_at_once_is_not_a_removal_by_the_guest() -> None:
    done = attempt(lambda machine: machine.event("DEVICE_DELETED"))
    assert (done.outcome, done.asked) == (Outcome.REMOVED, False)


def test_an_event_about_another_device_is_not_ours() -> None:
    def script(machine: ScriptedMachine) -> None:
        machine.awaiting()
        machine.event("DEVICE_DELETED", device="core2")
        machine.event("DEVICE_DELETED", device=None)

    done = attempt(script, seconds=0.05)
    assert (done.outcome, done.events) == (Outcome.PENDING, ())


def test_refused_gathers_the_events_that_come_while_the_guest_rolls_back() -> None:
    def script(machine: ScriptedMachine) -> None:
        machine.awaiting()
        machine.event("MEM_UNPLUG_ERROR")

    done = attempt(script, lambda machine: machine.event("DEVICE_UNPLUG_GUEST_ERROR"))
    assert (done.outcome, done.event_names) == (Outcome.REFUSED, ("MEM_UNPLUG_ERROR", "DEVICE_UNPLUG_GUEST_ERROR"))


def test_a_failure_that_is_told_during_the_rollback_is_a_refusal() -> None:
    def script(machine: ScriptedMachine) -> None:
        machine.awaiting()
        machine.kernel("failed")

    done = attempt(script, lambda machine: machine.event("DEVICE_UNPLUG_GUEST_ERROR"))
    assert done.outcome is Outcome.REFUSED


def test_a_failure_that_nobody_is_told_is_silence() -> None:
    def script(machine: ScriptedMachine) -> None:
        machine.awaiting()
        machine.kernel("began")
        machine.kernel("failed")

    done = attempt(script)
    assert (done.outcome, done.cause) == (Outcome.PENDING, Silence.REFUSED_UNSIGNALLED)
    assert "kernel: failed" in done.evidence


def test_rejected_by_qemu() -> None:
    def script(_: ScriptedMachine) -> None:
        raise QmpRefused("device_del", "GenericError", "Boot CPU core may not be unplugged")

    done = attempt(script)
    assert (done.outcome, done.asked, done.reply) == (Outcome.REJECTED, False, "Boot CPU core may not be unplugged")


@pytest.mark.parametrize("when", ["in the reply", "while the guest works", "at the barrier"])
def test_a_dead_qemu_ends_the_attempt_at_once(when: str) -> None:
    def die(machine: ScriptedMachine) -> None:
        machine.timeline.end(MachineDied("QEMU was killed by SIGSEGV", -11))

    def script(machine: ScriptedMachine) -> None:
        if when == "in the reply":
            die(machine)
            return
        machine.awaiting()
        if when == "at the barrier":
            machine.event("DEVICE_DELETED")
        else:
            die(machine)

    done = attempt(script, die, seconds=60)
    assert done.outcome is Outcome.CRASHED
    assert any("SIGSEGV" in line for line in done.evidence)


@pytest.mark.parametrize("state", ["paused", "prelaunch", "guest-panicked"])
def test_a_machine_that_does_not_run_hears_nothing(state: str) -> None:
    machine = ScriptedMachine(ScriptedMachine.awaiting)
    machine.state = state
    done = judge(machine, seconds=60).attempt()
    assert (done.outcome, done.cause) == (Outcome.PENDING, Silence.NOT_DELIVERED)
    assert state in done.evidence[0]


def test_a_machine_that_stops_meanwhile_hears_nothing() -> None:
    def script(machine: ScriptedMachine) -> None:
        machine.awaiting()
        machine.timeline.record(Lane.EVENT, "GUEST_PANICKED", {"event": "GUEST_PANICKED", "data": {}})

    assert attempt(script, seconds=60).cause is Silence.NOT_DELIVERED


def test_a_machine_without_an_operating_system() -> None:
    machine = ScriptedMachine(ScriptedMachine.awaiting)
    machine.has_guest = False
    assert judge(machine, seconds=60).attempt().cause is Silence.NOT_DELIVERED


def test_pci_without_rtas_errd() -> None:
    machine = ScriptedMachine(ScriptedMachine.awaiting)
    machine.errd = ErrdState.STOPPED
    done = judge(machine, Kind.PCI, seconds=60).attempt()
    assert done.cause is Silence.NOT_DELIVERED
    assert "rtas_errd is stopped" in done.evidence[0]


def test_pci_with_a_held_lock() -> None:
    def script(machine: ScriptedMachine) -> None:
        machine.awaiting()
        machine.kernel("began")

    machine = ScriptedMachine(script)
    machine.lock = LockHolder(7, "drmgr -c pci -i -s C0")
    done = judge(machine, Kind.PCI, seconds=0.05).attempt()
    assert (done.cause, done.evidence[-2]) == (
        Silence.QUEUE_BLOCKED,
        "guest: drmgr's lock is held by process 7, `drmgr -c pci -i -s C0`",
    )


@pytest.mark.parametrize(("heard", "cause"), [(True, Silence.STILL_WORKING), (False, Silence.NOT_DELIVERED)])
def test_the_backstop_says_that_it_was_one(heard: bool, cause: Silence) -> None:
    def script(machine: ScriptedMachine) -> None:
        machine.awaiting()
        if heard:
            machine.kernel("began")

    done = attempt(script, seconds=0.05)
    assert (done.outcome, done.cause) == (Outcome.PENDING, cause)
    assert "backstop" in done.evidence[-1]


def test_a_pending_core_is_asked_again_without_a_new_trace() -> None:
    machine = ScriptedMachine(lambda m: m.event("DEVICE_DELETED"))
    machine.pending = True
    done = judge(machine).attempt()
    assert (done.outcome, done.asked) == (Outcome.REMOVED, True)


def test_following_a_pending_attempt_keeps_its_history() -> None:
    machine = ScriptedMachine(ScriptedMachine.awaiting)
    machine.state = "paused"
    pending = judge(machine).attempt()
    machine.state = "running"
    machine.pending = True
    machine.event("DEVICE_DELETED")
    done = judge(machine).follow(pending)
    assert (done.outcome, done.asked, done.began) == (Outcome.REMOVED, True, pending.began)


def test_pci_whose_own_drmgr_has_the_lock_is_at_work() -> None:
    def script(machine: ScriptedMachine) -> None:
        machine.awaiting()
        machine.kernel("began")

    machine = ScriptedMachine(script)
    machine.lock = LockHolder(7, f"drmgr -c pci -r -s {DRC:#x} -n -V")
    assert judge(machine, Kind.PCI, seconds=0.05).attempt().cause is Silence.STILL_WORKING
