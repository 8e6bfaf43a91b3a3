"""Scripts of --spapr-record, played on a real QEMU without a guest."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from pytest_spapr import QemuBuild

_SECONDS = 120.0
_TEST = """
    import pytest
    from pytest_spapr import QmpRefused

    def test_it(launch_machine):
        machine = launch_machine(image=None, boot=False)
        execute = machine.qmp.execute
        execute("device_add", {"driver": "virtio-rng-pci", "id": "rng0", "addr": "5"})
        execute("device_add", {"driver": "virtio-rng-pci", "id": "rng1", "addr": "6"})
        with pytest.raises(QmpRefused):
            execute("device_del", {"id": "rng2"})
        since = machine.timeline.mark()
        execute("device_del", {"id": "rng0"})
        deleted = lambda record: record.event == "DEVICE_DELETED"
        machine.await_records(deleted, 2, since, "DEVICE_DELETED, of the device and of its part")
    """


@pytest.fixture
def recorded(pytester: pytest.Pytester, qemu_build: QemuBuild) -> Path:
    """The script of a test that passed."""
    pytester.makepyfile(_TEST)
    result = pytester.runpytest_subprocess(f"--spapr-qemu={qemu_build.name}", "--spapr-record", "--spapr-artefacts=left")
    result.assert_outcomes(passed=1)
    (path,) = (pytester.path / "left").glob("*/scenario.py")
    result.stdout.fnmatch_lines([f"recorded *1 script: *{path.parent.name}/scenario.py"])
    return path


def _run(path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(path), *arguments], capture_output=True, text=True, timeout=_SECONDS, check=False)


def test_a_script_reproduces_what_came_of_it(recorded: Path) -> None:
    done = _run(recorded)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout + done.stderr
    lines = [line.strip() for line in done.stdout.splitlines()]
    assert lines[-1] == "as it was recorded"
    assert "event DEVICE_DELETED rng0" in lines
    assert any(line.startswith("-> error: ") and "rng2" in line for line in lines)


def test_a_qemu_that_does_otherwise_is_told(recorded: Path) -> None:
    """Here one that is asked for something else: a device that it does not know."""
    text = recorded.read_text(encoding="utf-8")
    recorded.write_text(text.replace("'id': 'rng1'", "'id': 'rng3'"), encoding="utf-8")
    done = _run(recorded)
    assert done.returncode == 1
    assert done.stdout.splitlines()[-1] == "DIFFERENT: devices left: rng1 when it was recorded, now rng3"
