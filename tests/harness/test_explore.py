"""``spapr explore`` against a real QEMU. No guest runs here."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pytest_spapr import LaunchMachine, MachineError, QemuBuild
from pytest_spapr.cells import Cell
from pytest_spapr.explore import findings, script
from pytest_spapr.explore.firmware import SHAPE, FirmwareGround, firmware_subject
from pytest_spapr.explore.history import Violation
from pytest_spapr.explore.known import Avoid
from pytest_spapr.explore.model import BRIDGE, DIMM, LMB, PHB
from pytest_spapr.explore.search import Order, play, play_round
from pytest_spapr.explore.shrink import Shrunk
from pytest_spapr.explore.steps import Aside, Call, Command, Move, OddCall, Step, TakeEvents
from pytest_spapr.hotplug.defects import KNOWN_DEFECTS
from pytest_spapr.hotplug.drc_model import State, Transition
from pytest_spapr.machine import Harness

TAKEN = "pci-function-taken"
RESET = Command("system_reset")
BRIDGE_BELOW_PHB = (
    Command("device_add", {"driver": PHB, "id": "phb1", "index": 1}),
    Command("device_add", {"driver": BRIDGE, "id": "bridge1", "bus": "phb1.0", "chassis_nr": 1}),
    RESET,
    Command("device_del", {"id": "phb1"}),
    RESET,
)


def test_a_short_exploration_breaks_nothing_new(qemu_build: QemuBuild, spapr_harness: Harness, spapr_accelerator: str) -> None:
    """One seed, so that it is the same each time."""
    ground = FirmwareGround(spapr_harness, spapr_accelerator)
    outcome = play_round(Order(seed=1, number=1, examples=10, avoid=frozenset(Avoid)), ground)
    subject = firmware_subject(qemu_build, spapr_accelerator)
    assert outcome.finding is None, findings.story(outcome.finding, subject, "")
    assert outcome.steps > 200


def test_a_defect_that_is_forgotten_is_found_again_and_made_small(
    qemu_build: QemuBuild, spapr_harness: Harness, spapr_accelerator: str
) -> None:
    if qemu_build.version < (11,):
        pytest.skip("a search takes a minute, and one build shows as much as four")
    if not KNOWN_DEFECTS[TAKEN].applies(qemu_build, spapr_accelerator, None):
        pytest.skip(f"{qemu_build.version_text} does not have {TAKEN}")
    ground = FirmwareGround(spapr_harness, spapr_accelerator, forgotten=(TAKEN,))
    avoid = frozenset(Avoid) - {Avoid.TAKEN_FUNCTION}
    rounds = (play_round(Order(seed=1, number=number, examples=20, avoid=avoid), ground) for number in range(1, 41))
    found = next(outcome.finding for outcome in rounds if outcome.finding)
    assert found.violation.ended
    # With one more where there is a function 0, of which QEMU then dies at another line; and one for the bridge it may be behind.
    assert len(found.violation.steps) <= 4
    assert all(isinstance(step, Command) and step.name == "device_add" for step in found.violation.steps)


def test_the_script_of_what_was_found_breaks_qemu_without_us(
    tmp_path: Path, qemu_build: QemuBuild, spapr_harness: Harness, spapr_accelerator: str
) -> None:
    violation = play(BRIDGE_BELOW_PHB, FirmwareGround(spapr_harness, spapr_accelerator))
    assert violation is not None
    assert violation.ended
    subject = firmware_subject(qemu_build, spapr_accelerator)
    findings.write(tmp_path / "violation-1", Shrunk(violation, 1, 1, 1), subject, "")
    command = [sys.executable, str(tmp_path / "violation-1/violation_1.py")]
    # By default it runs the QEMU that it was seen with.
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True, env=dict(qemu_build.env))
    assert "QEMU ended with status -11" in done.stdout
    assert "RESET" in done.stdout


def played(ground: FirmwareGround) -> Violation:
    """Return a sound history of every kind of step, with states that are not the usual one."""
    scene = ground.scene()
    core = scene.play.model.facts.core_type
    steps: list[Step] = [
        Command("object-add", {"qom-type": "memory-backend-ram", "id": "memory1", "size": LMB}),
        Command("device_add", {"driver": DIMM, "id": "dimm1", "memdev": "memory1"}),
        Call(Transition.SET_USABLE, "dimm1"),
        Command("device_add", {"driver": core, "id": "core1", "core-id": 1}),
        Command("device_del", {"id": "nobody"}),
        TakeEvents(),
        Move(),
        Call(Transition.CONFIGURE, "core1"),
        Move(stored=True),
        OddCall((9001, 0x7FFFFFFF, 0)),
        Aside(Command("device_del", {"id": "core1"})),
        Aside(Command("device_del", {"id": "core1"})),
    ]
    try:
        for step in steps:
            scene.play.do(step)
        scene.play.finish()
    finally:
        scene.close()
    assert [done.step for done in scene.play.done] == steps
    states = {index: state for index, state in scene.play.model.connectors.items() if state is not State.CONFIGURED}
    devices = dict.fromkeys(scene.play.model.devices, ("", 0, 0))
    return Violation(tuple(scene.play.done), "", "", states=states, devices=devices)


def test_the_test_of_what_was_found_passes_where_nothing_breaks(
    launch_machine: LaunchMachine, spapr_harness: Harness, spapr_accelerator: str
) -> None:
    sound = played(FirmwareGround(spapr_harness, spapr_accelerator))
    names: dict[str, Any] = {}
    exec(script.test(sound, "", "history", SHAPE), names)
    names["test_history"](launch_machine)


def test_the_script_of_what_was_found_does_every_kind_of_step(
    tmp_path: Path, qemu_build: QemuBuild, spapr_harness: Harness, spapr_accelerator: str
) -> None:
    sound = played(FirmwareGround(spapr_harness, spapr_accelerator))
    findings.write(tmp_path / "violation-1", Shrunk(sound, 1, 1, 1), firmware_subject(qemu_build, spapr_accelerator), "")
    command = [sys.executable, str(tmp_path / "violation-1/violation_1.py")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True, env=dict(qemu_build.env))
    assert done.stdout.count("migrate -> completed\n") == 2
    assert "check-exception -> 2 events" in done.stdout
    assert "DEVICE_DELETED {'device': 'core1'" in done.stdout
    assert "QEMU lives\nQEMU ended with status " in done.stdout


def test_a_machine_moves_to_a_newer_build_and_the_script_has_both(
    tmp_path: Path, spapr_cell: Cell, qemu_build: QemuBuild, spapr_harness: Harness, spapr_accelerator: str
) -> None:
    older = spapr_cell.other_build("7.2")
    sound = played(FirmwareGround(replace(spapr_harness, build=older), spapr_accelerator, onward=qemu_build))
    subject = firmware_subject(older, spapr_accelerator, qemu_build)
    assert subject.shape["machine"] == "pseries-7.2"
    findings.write(tmp_path / "violation-1", Shrunk(sound, 1, 1, 1), subject, "")
    command = [sys.executable, str(tmp_path / "violation-1/violation_1.py")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True, env=dict(qemu_build.env))
    assert done.stdout.count("migrate -> completed\n") == 2
    assert "QEMU lives\n" in done.stdout


@pytest.mark.spapr_defect("dimm-refused-after-migration")
@pytest.mark.parametrize("refusal", [Transition.UNISOLATE, Transition.CONFIGURE])
def test_a_dimm_can_be_refused_after_a_move(spapr_harness: Harness, spapr_accelerator: str, refusal: Transition) -> None:
    steps: list[Step] = [
        Command("object-add", {"qom-type": "memory-backend-ram", "id": "memory1", "size": LMB}),
        Command("device_add", {"driver": DIMM, "id": "dimm1", "memdev": "memory1"}),
        RESET,
        Command("device_del", {"id": "dimm1"}),
        Move(),
        Call(refusal, "dimm1"),
    ]
    broken = play(steps, FirmwareGround(spapr_harness, spapr_accelerator))
    assert broken is None, broken.text


@pytest.mark.spapr_defect("phb-instance")
@pytest.mark.parametrize("later", ["phb", "bridge"])
def test_a_machine_moves_that_a_phb_has_gone_from(launch_machine: LaunchMachine, later: str) -> None:
    machine = launch_machine(image=None, boot=False)
    first = machine.phbs.plug(wait=False)
    if later == "phb":
        machine.phbs.plug(wait=False)
    else:
        machine.pci.plug("pci-bridge", chassis_nr=1, wait=False)
    # Nobody has taken it, so that it goes at once.
    first.unplug()
    try:
        machine.migrate()
    except MachineError as error:
        pytest.fail(str(error))


def test_what_is_pending_is_so_after_a_move(spapr_harness: Harness, spapr_accelerator: str) -> None:
    """Each kind, held against the model; what the guest then gives back goes, and the rest is pending in a third QEMU, too."""
    ground = FirmwareGround(spapr_harness, spapr_accelerator)
    scene = ground.scene()
    core = scene.play.model.facts.core_type
    steps: list[Step] = [
        Command("device_add", {"driver": core, "id": "core1", "core-id": 1}),
        Command("device_add", {"driver": PHB, "id": "phb1", "index": 1}),
        Command("device_add", {"driver": "virtio-rng-pci", "id": "pci1", "bus": "phb1.0"}),
        Command("device_add", {"driver": "virtio-rng-pci", "id": "pci2", "bus": "pci.0"}),
        RESET,
        *(Command("device_del", {"id": ident}) for ident in ("core1", "phb1", "pci1", "pci2")),
        Move(),
        *(Command("device_del", {"id": ident}) for ident in ("core1", "phb1", "pci1", "pci2")),
        Call(Transition.ISOLATE, "pci2"),
        Move(),
    ]
    scene.close()
    assert play(steps, ground) is None
