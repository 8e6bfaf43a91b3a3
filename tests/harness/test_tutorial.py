"""The tutorial, word by word: its files are saved, its commands are run, and each says what the tutorial says that it says."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from ci.night.job import ROOT

_BLOCK = re.compile(r"(?:[Ss]ave this as `(?P<file>[^`]+)`[^`]*)?```(?P<language>\w+)\n(?P<text>.*?)```", re.DOTALL)
_SECONDS = 600.0


def test_the_tutorial_can_be_followed(tmp_path: Path) -> None:
    blocks = list(_BLOCK.finditer((ROOT / "docs" / "tutorial.md").read_text(encoding="utf-8")))
    set_up, *others = (block for block in blocks if block["language"] == "sh")
    # These tests run in what it makes.
    assert "ci/setup" in set_up["text"]
    assert len(others) >= 4
    env = {key: value for key, value in os.environ.items() if not key.startswith("PYTEST")}
    env["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), env["PATH"]])
    said = ""
    for block in blocks[1:]:
        match block["language"]:
            case "python":
                (tmp_path / block["file"]).write_text(block["text"])
            case "sh":
                command = ["bash", "-ec", block["text"]]
                done = subprocess.run(
                    command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False, timeout=_SECONDS
                )
                said = done.stdout + done.stderr
                assert done.returncode == 0, said
            case "text":
                missing = [line for line in block["text"].splitlines() if not _said(line, said)]
                assert not missing, said
            case other:
                pytest.fail(f"a block in {other}: nobody says what is to be done with it")
    assert (tmp_path / "seen" / "index.html").is_file()


def _said(line: str, output: str) -> bool:
    """Return whether a line of the output has these words in this order, whatever stands around and between them."""
    words = ".*".join(map(re.escape, line.split()))
    return re.search(words, output) is not None
