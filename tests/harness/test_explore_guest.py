"""``spapr explore`` with a real guest: it can play what it draws."""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

from pytest_spapr import Contract, LaunchMachine, QemuBuild
from pytest_spapr.explore.guest_ground import SHAPE, GuestScene
from pytest_spapr.explore.guest_script import script
from pytest_spapr.explore.guest_script import test as guest_test
from pytest_spapr.explore.history import Violation
from pytest_spapr.explore.search import Scene
from pytest_spapr.explore.steps import Act

DIMM = {"name": "dimm1", "lmbs": 1, "backend": "ram"}


def test_a_history_with_faults_pauses_and_a_move_is_as_the_contracts_promise(
    launch_machine: LaunchMachine, contract: Contract, qemu_build: QemuBuild
) -> None:
    """Every step is checked by what explores; here it is shown that it can play them."""
    scene: Scene = GuestScene(launch_machine(**SHAPE), contract)
    steps = [
        Act("plug dimm", DIMM),
        Act("plug dimm", {"name": "dimm2", "lmbs": 2, "backend": "memfd"}),
        Act("migrate"),
        Act("fault on", {"fault": "offline refused"}),
        Act("unplug", {"device": "dimm1"}),
        Act("unplug", {"device": "dimm1"}),
        Act("fault off", {"fault": "offline refused"}),
        Act("guest remove", {"device": "dimm1"}),
        Act("pause"),
        Act("unplug", {"device": "dimm2"}),
        Act("resume"),
        Act("migrate", {"stored": True}),
        Act("device_del of nobody"),
    ]
    for step in steps:
        scene.play.do(step)
    scene.play.finish()
    assert [done.step for done in scene.play.done] == steps
    assert scene.driven()["LMB"]["configured"]["unplug"] == 3


@pytest.mark.spapr_slow
def test_both_scripts_of_a_history_do_it_again_for_real(
    launch_machine: LaunchMachine, contract: Contract, tmp_path: Path
) -> None:
    """A removal, a silence with its fault, and a refused command: as a program without us, and as a test."""
    if shutil.which("ssh") is None:
        pytest.skip("no ssh on this host, which the program is given for its lines in the guest")
    played = GuestScene(launch_machine(**SHAPE), contract).play
    for step in (
        Act("plug core", {"name": "core1"}),
        Act("plug dimm", DIMM),
        Act("fault on", {"fault": "offline refused"}),
        Act("unplug", {"device": "dimm1"}),
        Act("fault off", {"fault": "offline refused"}),
        Act("unplug", {"device": "core1"}),
        Act("device_del of nobody"),
    ):
        played.do(step)
    history = Violation(tuple(played.done), "", "")
    with tempfile.TemporaryDirectory(prefix="spapr-") as directory:
        socket = Path(directory, "qmp")
        machine = launch_machine(**SHAPE, qemu_args=("-qmp", f"unix:{socket},server=on,wait=off"))
        program = tmp_path / "history.py"
        program.write_text(script(history, "It was so.", program.name, ("-m", "1024")), encoding="utf-8")
        login = shlex.split(machine.guest.ssh_command())
        done = subprocess.run([sys.executable, program, socket, *login], capture_output=True, text=True, check=False, timeout=300)
    said = done.stdout
    assert done.returncode == 0, said + done.stderr
    assert said.count("DEVICE_DELETED {'device': ") == 1
    assert "DEVICE_DELETED {'device': 'core" in said
    assert "-> error: Device 'nobody' not found" in said
    assert said.count("-> status 0") == 2
    assert "QEMU lives:" in said
    names: dict[str, Any] = {}
    exec(guest_test(history, "It was so.", "history", SHAPE), names)
    names["test_history"](launch_machine(**SHAPE), contract)
