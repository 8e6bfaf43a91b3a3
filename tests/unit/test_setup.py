"""ci/setup, with an interpreter that only notes what it is asked for."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from ci.night.job import ROOT

# As python3 for the script: makes an environment that has itself in it, and as the one in it "installs".
_PYTHON = """\
#!/bin/sh
case "$*" in
--version) echo "Python 3.99.$VERSION" ;;
"-m venv --clear .venv") rm -rf .venv; mkdir -p .venv/bin; cp "$0" .venv/bin/python; echo made >>asked ;;
"-m venv .venv") mkdir -p .venv/bin; cp "$0" .venv/bin/python; echo made >>asked ;;
"-m pip install "*)
    echo installed >>asked
    if [ -n "$GATE" ]; then echo >"$GATE.up"; cat "$GATE" >/dev/null; fi
    [ -z "$FAILS" ] ;;
esac
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout with nothing else in it."""
    checkout = tmp_path / "checkout"
    (checkout / "ci").mkdir(parents=True)
    shutil.copy(ROOT / "ci" / "setup", checkout / "ci")
    (checkout / "pyproject.toml").write_text("[project]\n")
    python = tmp_path / "python"
    python.write_text(_PYTHON)
    python.chmod(0o755)
    return checkout


def start(checkout: Path, **variables: str) -> subprocess.Popen[str]:
    environment = {"PATH": os.environ["PATH"], "PYTHON": str(checkout.parent / "python"), "VERSION": "1", **variables}
    return subprocess.Popen(
        [checkout / "ci" / "setup"], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def done(checkout: Path, **variables: str) -> int:
    with start(checkout, **variables) as process:
        process.communicate(timeout=60)
    return process.returncode


def asked(checkout: Path) -> list[str]:
    return (checkout / "asked").read_text().split()


def test_it_is_made_once(checkout: Path) -> None:
    assert done(checkout) == 0
    assert done(checkout) == 0
    assert asked(checkout) == ["made", "installed"]


@pytest.mark.parametrize("what", ["moved", "interpreter"])
def test_nothing_of_another_environment_stays(checkout: Path, what: str) -> None:
    assert done(checkout) == 0
    (checkout / ".venv" / "bin" / "pytest").write_text("#!/of/the/old/one\n")
    if what == "moved":
        checkout = checkout.rename(checkout.with_name("elsewhere"))
    assert done(checkout, VERSION="2" if what == "interpreter" else "1") == 0
    assert asked(checkout) == ["made", "installed"] * 2
    assert not (checkout / ".venv" / "bin" / "pytest").exists()


def test_what_fails_is_done_again(checkout: Path) -> None:
    assert done(checkout) == 0
    assert done(checkout, VERSION="2", FAILS="yes") != 0
    assert done(checkout) == 0, "what was there before is none either"
    assert asked(checkout) == ["made", "installed"] * 3


@pytest.mark.skipif(shutil.which("flock") is None, reason="this host has no flock")
def test_the_second_of_two_at_once_waits_and_finds_it_made(checkout: Path) -> None:
    gate = checkout.parent / "gate"
    for path in (gate, gate.with_name("gate.up")):
        os.mkfifo(path)
    with start(checkout, GATE=str(gate)) as first:
        # The first one is in the midst of its installation.
        gate.with_name("gate.up").read_text()
        with start(checkout) as second:
            try:
                with pytest.raises(subprocess.TimeoutExpired):
                    second.wait(timeout=1)
            finally:
                gate.write_text("go on")
            assert (first.wait(timeout=60), second.wait(timeout=60)) == (0, 0)
    assert asked(checkout) == ["made", "installed"]
