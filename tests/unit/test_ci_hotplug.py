"""What ``ci/hotplug`` hands to pytest."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from ci.night.job import ROOT

PARALLEL = ["-n", "auto", "--dist", "worksteal"]
SUITE = "tests/hotplug"
ONE_TEST = "tests/hotplug/test_cores.py::test_a_core_comes_and_goes"


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout whose set-up does nothing, and whose pytest says where it runs and what it was given."""
    monkeypatch.delenv("SPAPR_IMAGE", raising=False)
    checkout = tmp_path / "a checkout"
    for file, text in {"ci/setup": "", ".venv/bin/pytest": 'pwd; echo "$SPAPR_IMAGE"; printf "%s\\n" "$@"'}.items():
        (checkout / file).parent.mkdir(parents=True)
        (checkout / file).write_text(f"#!/bin/sh\n{text}\n")
        (checkout / file).chmod(0o755)
    shutil.copy2(ROOT / "ci" / "hotplug", checkout / "ci")
    return checkout


def given(checkout: Path, *arguments: str) -> list[str]:
    """Return what pytest is given by a user who stands in a tree of QEMU, after what it is always given."""
    tree = checkout.with_name("qemu")
    (tree / "docs").mkdir(parents=True)
    command = [str(checkout / "ci" / "hotplug"), *arguments]
    said = subprocess.run(command, cwd=tree, capture_output=True, text=True, check=True).stdout.splitlines()
    assert said[:4] == [str(tree), "debian-12", "-c", str(checkout / "pyproject.toml")]
    return said[4:]


def test_the_whole_suite_runs_where_no_test_is_named(checkout: Path) -> None:
    assert given(checkout) == [*PARALLEL, str(checkout / SUITE)]


@pytest.mark.parametrize(
    "words", [["--spapr-qemu=build/qemu-system-ppc64"], ["--spapr-modules", "docs"], ["-k", "docs"], ["-k", "tests"]], ids=str
)
def test_an_options_value_is_no_test_and_stays_as_it_is(checkout: Path, words: list[str]) -> None:
    assert given(checkout, *words) == [*PARALLEL, str(checkout / SUITE), *words]


@pytest.mark.parametrize("named", ["tests/qemu", "./tests/qemu"])
def test_tests_of_the_checkout_are_found_from_anywhere(checkout: Path, named: str) -> None:
    assert given(checkout, named, "-x") == [*PARALLEL, f"{checkout}/{named}", "-x"]


def test_a_test_file_of_the_users_own_replaces_the_suite(checkout: Path) -> None:
    assert given(checkout, "test_mine.py") == [*PARALLEL, "test_mine.py"]


@pytest.mark.parametrize("words", [[ONE_TEST], ["tests/qemu", "--pdb"], ["tests/qemu", "-n4"], ["tests/qemu", "-s"]], ids=str)
def test_what_wants_one_process_gets_it(checkout: Path, words: list[str]) -> None:
    first, *others = words
    assert given(checkout, *words) == [f"{checkout}/{first}", *others]
