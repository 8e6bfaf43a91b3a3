"""Exploration with a guest: what is done, what is left out, what is held against the contract. The machine is a fake."""

from __future__ import annotations

import ast
import json
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pytest_spapr.deadline import Deadline
from pytest_spapr.errors import DeadlineExpired, MachineDied
from pytest_spapr.explore import findings, guest_script
from pytest_spapr.explore.guest_script import BY_HAND
from pytest_spapr.explore.history import Done, Violated, Violation
from pytest_spapr.explore.model import Expected
from pytest_spapr.explore.search import Order, play, play_round
from pytest_spapr.explore.shrink import shrink
from pytest_spapr.explore.steps import Act, Step
from pytest_spapr.hotplug.attempt import Attempt
from pytest_spapr.hotplug.outcome import Outcome

from .explored_guest import (
    CONTRACT,
    FakeGuestGround,
    FakeGuestScene,
    FakeMachine,
    lacks_a_block_of_each_dimm,
    refuses_dimms_after_a_core,
    sound,
)
from .test_explore import SUBJECT

CORE, DIMM = Act("plug core", {"name": "core1"}), Act("plug dimm", {"name": "dimm1", "lmbs": 1, "backend": "ram"})
CARD, BRIDGE, PHB = (Act(f"plug {what}", {"name": f"{what}1"}) for what in ("card", "bridge", "phb"))
DONE = Done(CORE, None, Expected(), "plug core")
FUNCTIONS = Act("plug functions", {"name": "pci1"})


def below(parent: str) -> Act:
    return Act("plug card", {"name": "below1", "below": parent})


def unplug(device: str) -> Act:
    return Act("unplug", {"device": device})


def fault(state: str, name: str) -> Act:
    return Act(f"fault {state}", {"fault": name})


def done(*steps: Step) -> list[str]:
    """Return what was done of a history on a sound machine."""
    scene = FakeGuestScene(sound)
    for step in steps:
        scene.play.do(step)
    scene.play.finish()
    return [str(one.step) for one in scene.play.done]


def test_a_machine_that_keeps_its_contract_is_sound() -> None:
    outcome = play_round(Order(seed=1, number=1, examples=20), FakeGuestGround())
    assert outcome.finding is None
    assert outcome.steps > 200


def test_a_planted_bug_is_found_and_made_as_small_as_it_can_be() -> None:
    rounds = (
        play_round(Order(seed=1, number=number, examples=20), FakeGuestGround(refuses_dimms_after_a_core))
        for number in range(1, 9)
    )
    found = next(outcome.finding for outcome in rounds if outcome.finding)
    names = [step.name for step in found.violation.steps if isinstance(step, Act)]
    assert sorted(names) == ["plug core", "plug dimm", "unplug", "unplug"]
    assert "outcome: expected removed, observed refused" in found.violation.text


@pytest.mark.parametrize(
    ("steps", "left"),
    [
        ([unplug("core1")], 0),
        ([CORE, Act("pause"), CORE], 2),
        ([fault("on", "CPU 0 offline")], 0),
        ([CORE, fault("on", "CPU 0 offline"), fault("on", "CPU 0 offline"), unplug("core1")], 3),
        ([fault("on", "rtas_errd killed"), CARD, PHB, FUNCTIONS, DIMM], 2),
        ([fault("on", "offline refused"), Act("pause"), Act("reset"), Act("migrate")], 2),
        ([Act("pause"), Act("panic"), Act("reset"), Act("reboot"), Act("migrate")], 2),
        ([Act("panic"), CORE, Act("resume"), Act("migrate"), Act("reboot"), Act("panic"), Act("reset"), DIMM], 3),
        ([DIMM, fault("on", "offline refused"), unplug("dimm1"), unplug("dimm1")], 4),
        ([CARD, below("card1"), BRIDGE, BRIDGE, below("bridge1")], 3),
        # Where one has gone that came before another no machine migrates (known defects xive-tctx-instance and phb-instance).
        ([CORE, Act("plug core", {"name": "core2"}), unplug("core1"), Act("migrate")], 3),
        ([CORE, Act("plug core", {"name": "core2"}), unplug("core2"), Act("migrate")], 4),
        ([PHB, BRIDGE, unplug("phb1"), Act("migrate")], 3),
        ([BRIDGE, PHB, unplug("phb1"), Act("migrate")], 4),
    ],
)
def test_what_is_not_possible_is_left_out(steps: list[Step], left: int) -> None:
    assert len(done(*steps)) == left


@pytest.mark.parametrize(("vof", "done"), [(False, 2), (True, 1)])
def test_a_machine_with_a_bridge_boots_again_by_slof_alone(vof: bool, done: int) -> None:
    # Known defect vof-bridge.
    scene = FakeGuestScene(sound, vof=vof)
    for step in (BRIDGE, Act("reset")):
        scene.play.do(step)
    assert len(scene.play.done) == done


def test_what_was_pending_is_followed_when_its_cause_is_gone() -> None:
    scene = FakeGuestScene(sound)
    for step in (CORE, DIMM, Act("pause"), unplug("core1"), unplug("dimm1")):
        scene.play.do(step)
    assert scene.play.pending() == ["core1", "dimm1"]
    scene.play.do(Act("resume"))
    assert not scene.play.devices
    assert scene.play.done[-1].code[1:] == (
        "assert core1.follow(core1_unplug) == contract.expect(core1.kind, 'after: resume')",
        "assert dimm1.follow(dimm1_unplug) == contract.expect(dimm1.kind, 'after: resume')",
    )


def test_what_a_panicked_guest_is_asked_for_goes_with_the_reset() -> None:
    scene = FakeGuestScene(sound)
    for step in (DIMM, Act("panic"), unplug("dimm1"), Act("reset")):
        scene.play.do(step)
    assert not scene.play.devices
    assert [line for one in scene.play.done[1:] for line in one.code] == [
        "machine.panic()",
        "dimm1_unplug = dimm1.unplug()",
        "assert dimm1_unplug == contract.expect(dimm1.kind, 'silence: machine paused')",
        "machine.reset()",
        "assert dimm1.follow(dimm1_unplug) == contract.expect(dimm1.kind, 'after: reset')",
    ]
    assert scene.play.done[1].sent == ("(sleep 1; echo c > /proc/sysrq-trigger) > /dev/null 2>&1 < /dev/null &",)


def test_a_panic_that_was_asked_for_is_no_violation_but_the_kernels_trouble_before_and_after_it_is() -> None:
    scene = FakeGuestScene(sound)
    scene.play.do(Act("panic"))
    scene.play.finish()
    scene.machine.says("Oops: Kernel access of bad area")
    with pytest.raises(Violated, match="the guest's kernel says: Oops"):
        scene.play.do(CORE)
    scene.machine.says("Oops: another")
    with pytest.raises(Violated, match="the guest's kernel says: Oops: another"):
        scene.play.do(Act("panic"))


def test_what_is_pending_goes_along_and_the_other_qemu_has_not_asked_yet() -> None:
    scene = FakeGuestScene(sound)
    for step in (DIMM, fault("on", "offline refused"), unplug("dimm1"), Act("migrate"), unplug("dimm1"), unplug("dimm1")):
        scene.play.do(step)
    assert [one.code[-1].rpartition(", ")[2] for one in scene.play.done[-2:]] == [
        "'repeat after migration')",
        "'repeat while pending')",
    ]


def test_what_a_paused_guest_was_asked_for_is_followed_where_it_moved_to() -> None:
    scene = FakeGuestScene(sound)
    for step in (CORE, DIMM, Act("pause"), unplug("core1"), unplug("dimm1"), Act("migrate"), unplug("core1"), unplug("dimm1")):
        scene.play.do(step)
    repeats = [one.code for one in scene.play.done[-2:]]
    assert [len(code) for code in repeats] == [2, 1]
    assert "'repeat after migration'" in repeats[0][1]
    scene.play.do(Act("migrate"))
    scene.play.do(Act("resume"))
    assert not scene.play.devices
    assert all("'after: migration'" in line for line in scene.play.done[-1].code[1:])


@pytest.mark.parametrize(
    ("version", "interrupts", "plug", "done"),
    [
        # tcg-pending-core-migration.
        ((7, 2, 22), "XIVE-IRQ", CORE, 3),
        ((7, 2, 22), "XIVE-IRQ", DIMM, 4),
        ((11, 1, 3), "XIVE-IRQ", CORE, 4),
        # tcg-xics-migration.
        ((11, 1, 3), "XICS", DIMM, 3),
    ],
)
def test_no_guest_is_moved_that_a_known_defect_hangs(
    version: tuple[int, int, int], interrupts: str, plug: Act, done: int
) -> None:
    name = str(plug.arguments["name"])
    scene = FakeGuestScene(sound, version=version, interrupts=interrupts)
    for step in (plug, Act("pause"), unplug(name), Act("migrate")):
        scene.play.do(step)
    assert len(scene.play.done) == done


def test_a_guest_with_xics_that_has_heard_of_what_is_pending_is_moved() -> None:
    scene = FakeGuestScene(sound, interrupts="XICS")
    for step in (DIMM, fault("on", "offline refused"), unplug("dimm1"), Act("migrate")):
        scene.play.do(step)
    assert len(scene.play.done) == 4


def test_a_paused_guest_is_not_asked_for_what_the_row_of_a_rejection_has() -> None:
    scene = FakeGuestScene(sound)
    for step in (BRIDGE, unplug("bridge1"), Act("pause"), unplug("bridge1")):
        scene.play.do(step)
    assert [one.code[1:] for one in scene.play.done[1::2]] == [
        ("assert bridge1_unplug == contract.expect(bridge1.kind, 'rejection: bridge')",),
        (),
    ]


@pytest.mark.parametrize(("lmbs", "lines"), [(1, 2), (2, 1)])
def test_of_what_the_guest_booted_with_only_a_dimm_of_one_lmb_has_a_row(lmbs: int, lines: int) -> None:
    scene = FakeGuestScene(sound)
    for step in (Act("plug dimm", {"name": "dimm1", "lmbs": lmbs, "backend": "ram"}), Act("reset"), unplug("dimm1")):
        scene.play.do(step)
    assert len(scene.play.done[-1].code) == lines


def test_function_0_is_asked_for_with_all_functions_of_its_slot() -> None:
    lock, unlock = (fault(state, "drmgr locked") for state in ("on", "off"))
    scene = FakeGuestScene(sound)
    for step in (FUNCTIONS, lock, unplug("pci1_1"), unplug("pci1"), unplug("pci1")):
        scene.play.do(step)
    assert [one.code[1:] for one in scene.play.done[2:]] == [
        ("assert pci1_1_unplug == contract.expect(pci1_1.kind, 'silence: function 0 stays')",),
        ("assert pci1_unplug == contract.expect(pci1.kind, 'silence: drmgr locked')",),
        ("assert pci1_unplug == contract.expect(pci1.kind, 'repeat while pending')",),
    ]
    scene = FakeGuestScene(sound)
    for step in (FUNCTIONS, lock, unplug("pci1"), unplug("pci1_1"), unlock, unplug("pci1_1")):
        scene.play.do(step)
    assert [one.code[1:] for one in (scene.play.done[3], scene.play.done[5])] == [
        ("assert pci1_1_unplug == contract.expect(pci1_1.kind, 'repeat while pending')",),
        (),
    ]


def test_function_0_and_a_phb_take_along_what_hangs_on_them() -> None:
    scene = FakeGuestScene(sound)
    for step in (FUNCTIONS, PHB, below("phb1"), unplug("pci1"), unplug("phb1")):
        scene.play.do(step)
    assert not scene.play.devices


@pytest.mark.parametrize("text", ["WARNING: CPU: 0 PID: 1 at mm/page.c:1", "Oops: Kernel access of bad area", "BUG: scheduling"])
def test_what_a_sound_kernel_does_not_say_is_a_violation(text: str) -> None:
    scene = FakeGuestScene(sound)
    scene.machine.says("WARNING: nvram corruption detected: 0-length partition")
    scene.play.do(CORE)
    scene.machine.says(text)
    with pytest.raises(Violated, match="the guest's kernel says"):
        scene.play.do(DIMM)


def test_a_guest_that_hangs_is_one_thing_whichever_command_waits_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    found = set()
    for what in ("the guest command `true`", "its turn for the guest command `cat /proc/cpuinfo; false`"):
        scene = FakeGuestScene(sound)

        def hangs(what: str = what) -> None:
            raise DeadlineExpired(what, 60.0, "it wrote ''")

        monkeypatch.setattr(scene.machine, "reboot", hangs)
        with pytest.raises(Violated) as told:
            scene.play.do(Act("reboot"))
        found.add(told.value.violation.text)
    assert found == {"waited 60.0 s in vain for the answer to a guest command"}


def test_a_guest_without_what_it_should_have_is_a_violation_at_the_end() -> None:
    scene = FakeGuestScene(sound)
    scene.play.do(CORE)
    scene.machine.guest.memory.blocks = lambda: range(3)
    with pytest.raises(Violated, match="at rest, the guest's blocks: expected 4, found 3"):
        scene.play.finish()


def test_what_is_found_at_rest_is_not_the_last_steps() -> None:
    ground = FakeGuestGround(lacks=lacks_a_block_of_each_dimm)
    violations = [play([DIMM, *more], ground) for more in ([CORE, Act("pause"), Act("resume")], [CARD], [])]
    first, second, short = (one for one in violations if one is not None)
    assert first.signature == "at the end: at rest, the guest's blocks: expected N, found N"
    # Nor is it news after another step.
    assert short.explains(first)
    assert short.explains(second)
    small = shrink(first, lambda steps: play(steps, ground), Deadline(60)).violation
    assert small.steps == (DIMM,)


def test_the_test_of_what_was_found_at_rest_does_and_asks_the_same() -> None:
    steps = [CORE, DIMM, fault("on", "offline refused"), Act("pause")]
    violation = play([*steps[:3]], FakeGuestGround(lacks=lacks_a_block_of_each_dimm))
    paused = play([CORE, DIMM, steps[-1]], FakeGuestGround(lacks=lacks_a_block_of_each_dimm))
    assert violation is not None
    assert paused is not None
    for found, lifted, sent in (
        (violation, "    fault2.close()\n", "echo 0 > "),
        (paused, "    machine.stop()\n    machine.cont()\n", "HISTORY"),
    ):
        text = guest_script.test(found, "It was so.", "history", {})
        assert lifted in text
        assert "    assert core1.views() == Views(Presence.PRESENT, Presence.PRESENT)\n" in text
        assert "    assert len(machine.guest.cpus.present()) == cpus + 1\n" in text
        assert sent in guest_script.script(found, "It was so.", "history.py", ())
        names: dict[str, Any] = {}
        exec(text, names)
        names["test_history"](FakeMachine(sound), CONTRACT)
        lacking = FakeMachine(sound)
        lacks_a_block_of_each_dimm(lacking)
        with pytest.raises(AssertionError):
            names["test_history"](lacking, CONTRACT)


@pytest.mark.parametrize("text", ["watchdog: BUG: soft lockup - CPU#0 stuck", "Call Trace:", "WARNING: at mm/page.c:1"])
def test_the_test_of_what_was_found_holds_the_kernel_to_what_the_search_does(text: str) -> None:
    scene = FakeGuestScene(sound)
    scene.play.do(CORE)
    names: dict[str, Any] = {}
    exec(guest_script.test(Violation(tuple(scene.play.done), "", ""), "It was so.", "history", {}), names)
    machine = FakeMachine(sound)
    names["test_history"](machine, CONTRACT)
    machine.says(text)
    with pytest.raises(AssertionError):
        names["test_history"](machine, CONTRACT)


def test_a_death_is_a_violation_with_what_qemu_said() -> None:
    def dies(machine: FakeMachine, attempt: Attempt) -> Attempt:
        raise MachineDied("QEMU (pid 7) was killed by SIGABRT", -6, ("hw/ppc: Assertion `x' failed",))

    found = play([CORE, unplug("core1")], FakeGuestGround(dies))
    assert found is not None
    assert found.ended
    assert found.text == "QEMU (pid 7) was killed by SIGABRT hw/ppc: Assertion `x' failed"
    assert found.signature == "unplug core: QEMU (pid N) was killed by SIGABRT hw/ppc: Assertion `x' failed"


def test_what_was_found_is_written_as_python(tmp_path: Path) -> None:
    def refuses(machine: FakeMachine, attempt: Attempt) -> Attempt:
        return replace(attempt, outcome=Outcome.REVERTED)

    steps = [CORE, FUNCTIONS, fault("on", "CPU 0 offline"), Act("device_del of nobody"), unplug("core1")]
    violation = play(steps, FakeGuestGround(refuses))
    assert violation is not None
    found = shrink(violation, lambda _: None, Deadline(0))
    text = findings.write(
        tmp_path / "violation-1", found, replace(SUBJECT, guest="debian-12 with Linux 6.1.0"), "Found with seed 1."
    )
    assert "debian-12 with Linux 6.1.0: after 5 steps" in text
    for name in ("violation_1.py", "test_violation_1.py"):
        ast.parse((tmp_path / "violation-1" / name).read_text(encoding="utf-8"))
    test = (tmp_path / "violation-1/test_violation_1.py").read_text(encoding="utf-8")
    assert "    core1 = machine.cores.plug()\n    pci1, pci1_1 = machine.pci.plug_functions('virtio-rng-pci')\n" in test
    assert "    assert core1_unplug == contract.expect(core1.kind, 'refusal: last online CPU')\n" in test
    plain = (tmp_path / "violation-1/violation_1.py").read_text(encoding="utf-8")
    assert "'echo 0 > /sys/devices/system/cpu/cpu0/online'," in plain


class FakeMonitor:
    """A QMP server: accepts all commands but one that it does not know, and ends at one. :ivar heard: their names."""

    def __init__(self, path: Path, ends_at: str = "") -> None:
        self.heard: list[str] = []
        self._ends_at = ends_at
        self._server = socket.socket(socket.AF_UNIX)
        self._server.bind(str(path))
        self._server.listen()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._server.close()

    def _serve(self) -> None:
        with suppress(OSError):
            while True:
                connection = self._server.accept()[0]
                with connection:
                    self._speak(connection)

    def _speak(self, connection: socket.socket) -> None:
        connection.sendall(
            b'{"QMP": {"version": {"qemu": {"major": 11, "minor": 1, "micro": 3}, "package": ""}, "capabilities": []}}\n'
        )
        # The client sends no ends of lines, and waits for each answer.
        while said := connection.recv(1 << 16):
            asked = json.loads(said)
            self.heard.append(asked["execute"])
            if asked["execute"] == self._ends_at:
                return
            answer = {"error": {"class": "GenericError", "desc": "no"}} if asked["execute"] == "unknown" else {"return": {}}
            named = {name: asked[name] for name in asked if name == "id"}
            connection.sendall(json.dumps(answer | named).encode() + b"\n")


@pytest.mark.parametrize(
    ("ends_at", "status", "says"), [("", 0, "QEMU lives: {}"), ("device_del", 1, "QEMU ended, most likely: ")]
)
def test_the_program_of_what_was_found_sends_it_again_and_tells_qemus_end(
    tmp_path: Path, ends_at: str, status: int, says: str
) -> None:
    sent = ({"execute": "stop"}, "exit 3", {BY_HAND: "migrate it"}, {"execute": "unknown"}, {"execute": "device_del"})
    history = Violation((replace(DONE, sent=sent),), "", "")
    program = tmp_path / "history.py"
    text = guest_script.script(history, "It was so.", program.name, ("-m", "1024M"))
    assert "started with -m 1024M" in text
    program.write_text(text.replace("SECONDS = 8", "SECONDS = 0.01"))
    with tempfile.TemporaryDirectory(prefix="spapr-") as directory:
        monitor = FakeMonitor(Path(directory, "qmp"), ends_at)
        try:
            words = [sys.executable, str(program), f"{directory}/qmp", "sh", "-c"]
            done = subprocess.run(words, input="\n", capture_output=True, text=True, check=False, timeout=20)
        finally:
            monitor.close()
    assert (done.returncode, done.stderr) == (status, "")
    assert "in the guest: exit 3 -> status 3" in done.stdout
    assert "migrate it   [Enter] " in done.stdout
    assert "{'execute': 'unknown'} -> error: no" in done.stdout
    assert done.stdout.splitlines()[-1].startswith(says)
    # A new connection after what was done by hand.
    assert monitor.heard[:5] == ["qmp_capabilities", "stop", "qmp_capabilities", "unknown", "device_del"]


def test_a_move_is_left_to_a_person_by_the_program() -> None:
    scene = FakeGuestScene(sound)
    for arguments in ({}, {"stored": True}):
        scene.play.do(Act("migrate", arguments))
    moved, stored = scene.play.done
    assert [list(step) for step in moved.sent if isinstance(step, Mapping)] == [[BY_HAND]]
    assert "to a file, and from there to another QEMU" in str(stored.sent)


def test_a_save_and_a_restore_are_in_the_test_of_what_was_found() -> None:
    scene = FakeGuestScene(sound)
    scene.play.do(Act("migrate", {"stored": True}))
    text = guest_script.test(Violation(tuple(scene.play.done), "", ""), "It was so.", "history", {})
    ast.parse(text)
    assert "from pathlib import Path\n" in text
    assert "contract: Contract, tmp_path: Path)" in text
    assert 'machine.migrate(through=tmp_path / "state1")\n' in text
