"""Completion and manual pages, made from the command's own parser."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pytest_spapr import cli


def _completed(script: Path, *words: str) -> list[str]:
    """Return what bash offers for the last word."""
    line = " ".join(f"'{word}'" for word in ("spapr", *words))
    asked = f"COMP_WORDS=({line}); COMP_CWORD={len(words)}; _shtab_spapr spapr '{words[-1]}' ''"
    code = f"source {script}; {asked}; printf '%s\\n' \"${{COMPREPLY[@]}}\""
    done = subprocess.run(["bash", "--norc", "-c", code], capture_output=True, text=True, cwd=script.parent, check=False)
    return done.stdout.split()


@pytest.mark.skipif(shutil.which("bash") is None, reason="this machine has no bash")
def test_bash_completes_areas_commands_options_and_choices(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["completion", "bash"]) == 0
    script = tmp_path / "spapr.bash"
    script.write_text(capsys.readouterr().out)
    assert {"doctor", "boot", "qemu", "manual"} <= set(_completed(script, ""))
    assert _completed(script, "tim") == ["timeline"]
    assert _completed(script, "qemu", "re") == ["remove"]
    assert _completed(script, "doctor", "--js") == ["--json"]
    assert _completed(script, "completion", "z") == ["zsh"]
    (tmp_path / "vmlinux-mine").touch()
    assert "vmlinux-mine" in _completed(script, "boot", "--kernel", "vml")


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_other_shells_have_completion_too(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["completion", shell]) == 0
    assert "Look at all that is needed" in capsys.readouterr().out


def test_each_area_has_a_manual_page_with_its_options(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    directory = tmp_path / "man" / "man1"
    assert cli.main(["manual", str(directory)]) == 0
    told = capsys.readouterr().out
    assert told.startswith(f"{directory}: spapr.1, spapr-doctor.1, spapr-boot.1, ")
    pages = {path.name: path.read_text() for path in directory.iterdir()}
    assert {"spapr.1", "spapr-qemu.1", "spapr-completion.1"} <= pages.keys()
    doctor = pages["spapr-doctor.1"].replace("\\", "")
    assert '.TH SPAPR-DOCTOR "1"' in doctor
    assert "spapr-doctor - what is missing here, and the command that mends it" in doctor
    for words in ("--json", "--cache-dir", "Exit status: 0 tests can be run"):
        assert words in doctor
    assert "--trees" in pages["spapr-qemu.1"].replace("\\", "")


@pytest.mark.skipif(shutil.which("groff") is None, reason="this machine has no groff")
def test_manual_pages_are_sound_to_groff(tmp_path: Path) -> None:
    assert cli.main(["manual", str(tmp_path)]) == 0
    pages = sorted(map(str, tmp_path.iterdir()))
    done = subprocess.run(["groff", "-man", "-Tutf8", "-ww", "-z", *pages], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_directory_that_cannot_be_written_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    assert cli.main(["manual", str(tmp_path / "file")]) == 2
    assert "nothing can be written there" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "module", "name"),
    [(["completion", "bash"], "shtab", "shtab"), (["manual", "/nonesuch"], "argparse_manpage.manpage", "argparse-manpage")],
)
def test_a_library_that_is_missing_is_named(
    arguments: list[str], module: str, name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    assert cli.main(arguments) == 2
    assert f"needs {name}, which is not installed: pip install 'pytest-spapr[live]'" in capsys.readouterr().err
