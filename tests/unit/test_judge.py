"""The judge, over a machine whose records are scripted: each outcome, each cause of silence, each way to end."""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import pytest

from pytest_spapr.errors import ConfigError, DeadlineExpired, MachineDied, MachineError, QmpRefused, SpaprError
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
        self.interrupts = 0
        self.guest = SimpleNamespace(
            hotplug_interrupts=lambda: self.interrupts,
            settle=lambda: on_settle(self),
            rtas_errd=SimpleNamespace(state=lambda: self.errd),
            drmgr=SimpleNamespace(lock_holder=lambda: self.lock),
        )
        self.has_guest = True
        self.state = "running"
        self.pending = False
        self.waiting: bool | None = True
        self.in_qemu = Presence.PRESENT
        # What the guest's view is answered with.
        self.silence: SpaprError | None = None

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


class ScriptedDevice:
    """A device of such a machine."""

    id = "core1"
    drcs = (DRC,)

    def __init__(self, machine: ScriptedMachine, kind: Kind) -> None:
        self.machine = machine
        self.kind = kind

    @property
    def waiting(self) -> bool | None:
        return self.machine.waiting if self.machine.timeline.ended is None else None

    def unplug_clue(self, record: Record) -> Clue | None:
        return clue(record)

    def unannounced(self, since: int) -> str | None:
        return None

    def views(self) -> Views:
        if self.machine.silence is not None:
            raise self.machine.silence
        return Views(self.machine.in_qemu, Presence.UNKNOWN)

    def qemu_presence(self) -> Presence:
        return self.machine.in_qemu


def judge(machine: ScriptedMachine, kind: Kind = Kind.CORE, seconds: float = 2.0) -> Judge:
    device = cast("Unpluggable", ScriptedDevice(machine, kind))
    return Judge(device, cast("Machine", machine), pending=machine.pending, seconds=seconds)


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


def test_a_device_without_an_id_is_told_by_its_path() -> None:
    """That of its parts is longer."""
    path = "/machine/unattached/device[2]"

    def script(machine: ScriptedMachine) -> None:
        machine.awaiting()
        machine.event("DEVICE_DELETED", device=None, path=f"{path}/thread[0]")
        machine.event("DEVICE_UNPLUG_GUEST_ERROR", device=None, path=path)

    one = judge(ScriptedMachine(script))
    one._device.id = path
    assert (one.attempt().outcome, one.attempt().event_names) == (Outcome.REFUSED, ("DEVICE_UNPLUG_GUEST_ERROR",))


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


def test_a_device_without_an_id_of_its_own_is_known_by_its_path() -> None:
    def script(machine: ScriptedMachine) -> None:
        machine.awaiting()
        machine.event("DEVICE_DELETED", device="core1")
        machine.event("DEVICE_DELETED", device=None, path="/machine/unattached/device[2]/thread[0]")
        machine.event("DEVICE_DELETED", device=None, path="/machine/unattached/device[2]")

    scripted = ScriptedMachine(script)
    device = ScriptedDevice(scripted, Kind.CORE)
    device.id = "/machine/unattached/device[2]"
    done = Judge(cast("Unpluggable", device), cast("Machine", scripted), pending=False, seconds=2.0).attempt()
    assert done.outcome is Outcome.REMOVED
    assert [event["data"]["path"] for event in done.events] == [device.id]


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


def test_a_machine_that_was_paused_and_runs_again_is_listened_to() -> None:
    """As one is that was moved to another QEMU before the attempt was followed."""

    def script(machine: ScriptedMachine) -> None:
        machine.awaiting()
        machine.timeline.record(Lane.EVENT, "STOP", {"event": "STOP", "data": {}})
        machine.timeline.record(
            Lane.EVENT, "DEVICE_DELETED", {"event": "DEVICE_DELETED", "data": {"device": "core1", "path": "x"}}
        )

    assert attempt(script, seconds=60).outcome is Outcome.REMOVED


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


_OOPS = ("Oops: sig: 4", "Workqueue: pseries hotplug workque pseries_hp_work_fn", "---[ end trace 0000000000000000 ]---")
_WARNING = ("WARNING: at dlpar.c:1", *_OOPS[1:])


@pytest.mark.parametrize(
    ("kind", "words", "cause"),
    [
        (Kind.CORE, _OOPS, Silence.STILL_WORKING),
        # Neither ends the worker, nor does it work for these.
        (Kind.CORE, _WARNING, Silence.NOT_DELIVERED),
        (Kind.PCI, _OOPS, Silence.NOT_DELIVERED),
    ],
)
def test_an_oops_of_the_worker_ends_the_wait(kind: Kind, words: tuple[str, ...], cause: Silence) -> None:
    def script(machine: ScriptedMachine) -> None:
        machine.awaiting()
        for line in words:
            machine.kernel(line)

    done = attempt(script, kind=kind, seconds=600 if cause is Silence.STILL_WORKING else 0.05)
    assert (done.outcome, done.cause) == (Outcome.PENDING, cause)
    assert [line for line in done.evidence if "Oops" in line] == [
        "guest's kernel: Oops: sig: 4 on the pseries hotplug workque" for line in words if "Oops" in line
    ]


def test_what_the_worker_did_before_it_oopsed_counts() -> None:
    def script(machine: ScriptedMachine) -> None:
        machine.awaiting()
        machine.event("DEVICE_DELETED")
        for line in _OOPS:
            machine.kernel(line)

    assert attempt(script).outcome is Outcome.REMOVED


@pytest.mark.parametrize(
    "silence", [DeadlineExpired("the guest command `cat`", 5.0), MachineError("the machine stopped running during `cat`")]
)
def test_a_guest_that_does_not_answer_is_evidence(silence: SpaprError) -> None:
    machine = ScriptedMachine(ScriptedMachine.awaiting)
    machine.silence = silence
    done = judge(machine, seconds=0.05).attempt()
    assert done.outcome is Outcome.PENDING
    assert done.evidence[-1] == f"the guest does not answer: {silence}"
    assert done.views == Views(Presence.PRESENT, Presence.UNKNOWN)


def test_a_repeat_that_the_guest_is_not_told_of_needs_no_waiting() -> None:
    machine = ScriptedMachine(lambda m: None)
    machine.pending = True
    done = judge(machine, seconds=60).attempt()
    assert (done.outcome, done.cause) == (Outcome.PENDING, Silence.NOT_DELIVERED)
    assert "no hotplug interrupt came" in done.evidence[0]


def test_a_repeat_begins_with_its_command() -> None:
    def answer(machine: ScriptedMachine) -> int:
        machine.timeline.record(Lane.QMP, "<- query-status")
        return machine.interrupts

    def script(machine: ScriptedMachine) -> None:
        machine.timeline.record(Lane.QMP, "<- device_del")

    machine = ScriptedMachine(script)
    machine.pending = True
    machine.guest.hotplug_interrupts = lambda: answer(machine)
    done = judge(machine, seconds=60).attempt()
    heard = [record.text for record in machine.timeline.since(done.began, Lane.QMP)]
    assert heard[0] == "<- device_del", "its age counts from the first answer"


def test_a_qemu_that_dies_before_a_repeat_has_crashed() -> None:
    def die() -> int:
        machine.timeline.end(died)
        raise died

    died = MachineDied("QEMU was killed by SIGSEGV", -11, ())
    machine = ScriptedMachine(lambda m: None)
    machine.pending = True
    machine.guest.hotplug_interrupts = die
    assert judge(machine).attempt().outcome is Outcome.CRASHED


def test_a_pending_core_is_asked_again_without_a_new_trace() -> None:
    def script(machine: ScriptedMachine) -> None:
        machine.interrupts += 1
        machine.event("DEVICE_DELETED")

    machine = ScriptedMachine(script)
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


def pending(machine: ScriptedMachine) -> Attempt:
    """A pending attempt on a machine that goes on running."""
    machine.on_delete = ScriptedMachine.awaiting
    machine.state = "paused"
    attempt = judge(machine).attempt()
    machine.state = "running"
    machine.event("RESUME", device=None)
    assert (attempt.outcome, attempt.waiting) == (Outcome.PENDING, True)
    return attempt


def test_silence_is_pending_only_while_qemu_waits() -> None:
    def script(machine: ScriptedMachine) -> None:
        machine.awaiting()
        machine.kernel("failed")
        machine.waiting = False

    done = attempt(script)
    assert (done.outcome, done.cause, done.waiting) == (Outcome.REVERTED, Silence.REFUSED_UNSIGNALLED, False)
    assert "no longer waits" in done.evidence[-1]


def test_a_qemu_that_cannot_say_whether_it_waits_is_believed_to() -> None:
    machine = ScriptedMachine(ScriptedMachine.awaiting)
    machine.state, machine.waiting = "paused", None
    done = judge(machine).attempt()
    assert (done.outcome, done.waiting) == (Outcome.PENDING, None)


def test_an_event_that_comes_while_qemu_is_asked_is_the_outcome() -> None:
    class Telling(ScriptedMachine):
        """Its guest refuses just before QEMU is asked whether it waits."""

        def execute(self, command: str, _: object = None) -> dict[str, Any]:
            if command == "query-status":
                self.event("DEVICE_UNPLUG_GUEST_ERROR")
            return super().execute(command)

    machine = Telling(ScriptedMachine.awaiting)
    machine.state, machine.waiting = "paused", False
    assert judge(machine).attempt().outcome is Outcome.REFUSED


def test_a_device_that_is_gone_without_its_event_yet_is_waited_for() -> None:
    """The event of a PCI device comes up to a second after the device has left QEMU's tree."""

    def script(machine: ScriptedMachine) -> None:
        machine.awaiting()
        machine.state = "paused"
        machine.waiting, machine.in_qemu = False, Presence.ABSENT
        threading.Timer(0.1, lambda: machine.event("DEVICE_DELETED")).start()

    assert attempt(script).outcome is Outcome.REMOVED


def test_outlasting_ends_with_what_qemu_then_says() -> None:
    machine = ScriptedMachine(ScriptedMachine.awaiting)
    first = pending(machine)
    machine.pending = True
    second = judge(machine).outlast(first, 0.05)
    assert (second.outcome, second.cause, second.began) == (Outcome.PENDING, Silence.NOT_DELIVERED, first.began)
    machine.waiting = False
    third = judge(machine).outlast(second, 0.1)
    assert (third.outcome, third.cause, third.events) == (Outcome.REVERTED, Silence.NOT_DELIVERED, ())


def test_outlasting_ends_with_an_event() -> None:
    machine = ScriptedMachine(ScriptedMachine.awaiting)
    first = pending(machine)
    machine.event("DEVICE_DELETED")
    assert judge(machine).outlast(first, 60).outcome is Outcome.REMOVED


def test_outlasting_hears_that_the_guest_gave_up() -> None:
    machine = ScriptedMachine(ScriptedMachine.awaiting)
    first = pending(machine)
    machine.kernel("failed")
    assert judge(machine).outlast(first, 0.05).cause is Silence.REFUSED_UNSIGNALLED


def test_outlasting_ends_with_qemu() -> None:
    machine = ScriptedMachine(ScriptedMachine.awaiting)
    first = pending(machine)
    machine.timeline.end(MachineDied("QEMU was killed by SIGSEGV", -11))
    done = judge(machine).outlast(first, 60)
    assert (done.outcome, done.waiting) == (Outcome.CRASHED, None)


def test_nothing_grows_older_in_a_paused_machine() -> None:
    machine = ScriptedMachine(ScriptedMachine.awaiting)
    first = pending(machine)
    machine.state = "paused"
    machine.event("STOP", device=None)
    with pytest.raises(MachineError, match="the machine is paused: its virtual clock stands still"):
        judge(machine).outlast(first, 60)


def test_a_refusal_that_is_outlasted_stays_one() -> None:
    def script(machine: ScriptedMachine) -> None:
        machine.waiting = False
        machine.event("RESUME", device=None)
        machine.awaiting()
        machine.event("DEVICE_UNPLUG_GUEST_ERROR")

    machine = ScriptedMachine(script)
    refused = judge(machine).attempt()
    machine.kernel("failed")
    later = judge(machine).outlast(refused, 0.05)
    assert (later.outcome, later.cause, later.event_names) == (Outcome.REFUSED, None, ("DEVICE_UNPLUG_GUEST_ERROR",))


def test_what_is_over_is_over() -> None:
    machine = ScriptedMachine(lambda m: m.event("DEVICE_DELETED"))
    with pytest.raises(
        ConfigError, match="only an attempt that is pending, refused, reverted can be outlasted, not: core core1: REMOVED"
    ):
        judge(machine).outlast(judge(machine).attempt(), 1)
    removed = judge(machine).attempt()
    assert judge(machine, seconds=60).follow(removed) is removed
