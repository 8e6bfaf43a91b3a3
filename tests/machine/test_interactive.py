"""``spapr boot`` with a guest."""

from __future__ import annotations

import subprocess
import sys

import pytest

from pytest_spapr import GuestImage, QemuBuild

_SECONDS = 300.0
_LINES = """\
!uname -r
device_add driver=virtio-rng-pci id=rng0
!printf 'a\\033[2Jb\\n' >&2; exit 3
query-status
"""


@pytest.mark.parametrize("start", ["clone", "boot"])
def test_a_guest_answers_in_the_terminal_of_its_machine(qemu_build: QemuBuild, guest_image: GuestImage, start: str) -> None:
    code = "import sys; from pytest_spapr.cli import main; sys.exit(main())"
    options = (f"--qemu={qemu_build.name}", str(guest_image.directory), f"--start={start}")
    command = [sys.executable, "-c", code, "boot", *options]
    done = subprocess.run(command, input=_LINES, capture_output=True, text=True, timeout=_SECONDS, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert guest_image.kernel_release in lines
    assert "a\\x1b[2Jb" in lines, "a guest does nothing to the terminal"
    assert "[status 3]" in lines
    assert any("log in: ssh -p " in line for line in lines)
    # What the guest says when it boots; a clone was booted at another time.
    assert any("service] init: ready" in line for line in lines) is (start == "boot")
