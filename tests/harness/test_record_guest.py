"""Scripts of --spapr-record: what is done to a guest, done again with nothing but qemu.qmp and the image."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from pytest_spapr import Contract, Guest, GuestImage, Outcome, PseriesMachine
from pytest_spapr.record.scenario import recorded
from pytest_spapr.record.script import script

_SECONDS = 300.0
_MARK = "the test's own part begins"


def _script(machine: PseriesMachine, image: GuestImage, path: Path) -> Path:
    """Write what was done to a machine since its :data:`_MARK`."""
    records = machine.timeline.since()
    began = next(record.seq for record in records if record.text == _MARK)
    children = machine.qmp.execute("qom-list", {"path": "/machine/peripheral"})
    left = [child["name"] for child in children if child["name"] != "type"]
    scenario = recorded(records[began:], boots=True, left=left, ended=machine.timeline.now, dies=False)
    path.write_text(script(scenario, "What a test did.", path.name, machine.build, machine.spec, image), encoding="utf-8")
    return path


def _run(path: Path) -> subprocess.CompletedProcess[str]:
    # Where this package cannot be imported.
    code = (
        "import runpy, sys; sys.modules['pytest_spapr'] = None; del sys.argv[0]; runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    return subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, timeout=_SECONDS, check=False)


@pytest.fixture
def script_of_a_refusal(
    machine: PseriesMachine, guest: Guest, guest_image: GuestImage, contract: Contract, tmp_path: Path
) -> Path:
    """A core that the guest keeps, with whatever this QEMU tells of it, and a PCI device that comes and goes."""
    machine.timeline.step(_MARK)
    core = machine.cores.plug()
    with guest.cpus.offline(0):
        assert core.unplug() == contract.refusal(core, cause="last online CPU")
    card = machine.pci.plug(driver="virtio-rng-pci")
    assert card.unplug().outcome is Outcome.REMOVED
    guest.run("test -d /sys").check()
    return _script(machine, guest_image, tmp_path / "scenario.py")


def test_a_script_reproduces_a_refusal_and_a_removal(script_of_a_refusal: Path) -> None:
    done = _run(script_of_a_refusal)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout + done.stderr
    lines = [line.strip() for line in done.stdout.splitlines()]
    assert lines[-1] == "as it was recorded"
    assert "in the guest: test -d /sys" in lines
    assert any(line.startswith("event DEVICE_DELETED pci") for line in lines)


def test_a_script_without_the_cause_of_the_refusal_tells_the_difference(script_of_a_refusal: Path) -> None:
    text = script_of_a_refusal.read_text(encoding="utf-8")
    broken = text.replace("echo 0 > /sys/devices/system/cpu/cpu0/online", "true")
    assert broken != text
    script_of_a_refusal.write_text(broken.replace("SECONDS = 180.0", "SECONDS = 30.0"), encoding="utf-8")
    done = _run(script_of_a_refusal)
    assert done.returncode == 1, done.stdout
    assert done.stdout.splitlines()[-1].startswith("DIFFERENT: ")
