"""Contracts as a run meets them: rows of one's own, and what is said where the contract is not quite that of the build."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from pytest_spapr import cells

from . import stubs

REMOVAL = """
def test_it(machine, contract):
    assert machine.unplug("removed") == contract.removal(machine.unplug("removed"))
"""
ROWS = """
[[row]]
kind = "core"
situation = "removal"
outcome = "removed"
asked = true
qemu = "absent"
guest = "absent"
source = "a silent QEMU of my own"
"""


@pytest.mark.usefixtures("stubbed")
def test_rows_of_ones_own_stand_above_those_of_the_package(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(REMOVAL)
    pytester.makefile(".toml", rows=ROWS)
    without = pytester.runpytest()
    without.assert_outcomes(failed=1)
    without.stdout.fnmatch_lines("*events * DEVICE_DELETED x1 *none")
    result = pytester.runpytest("--spapr-contract=rows.toml", "--spapr-qemu=7.2")
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines("spapr: QEMU 7.2.22 *, contract rows of *rows.toml stand above the package's")


@pytest.mark.usefixtures("stubbed")
def test_rows_of_a_situation_that_no_test_of_the_suite_asks_for_are_pointed_out(pytester: pytest.Pytester) -> None:
    pytester.makepyfile("def test_it(machine): pass")
    pytester.makefile(".toml", rows=ROWS + ROWS.replace("removal", "remval"))
    result = pytester.runpytest("--spapr-contract=rows.toml", "--spapr-qemu=7.2")
    result.stdout.fnmatch_lines("spapr: QEMU 7.2.22 *stand above the package's, of core 'remval' the package has none")


@pytest.mark.usefixtures("stubbed")
def test_rows_that_are_broken_promises_fail_with_their_source(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(REMOVAL)
    pytester.makefile(".toml", rows=ROWS.replace('"removed"', '"crashed"'))
    result = pytester.runpytest("--spapr-contract=rows.toml")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*outcome * crashed *removed", "*contract * a silent QEMU of my own"])


def test_rows_that_cannot_be_used_end_the_run_before_it_begins(pytester: pytest.Pytester) -> None:
    pytester.makepyfile("def test_unrelated(): pass")
    pytester.makefile(".toml", rows="[[row]]\nkind = 'core'\n")
    result = pytester.runpytest("--spapr-contract=rows.toml")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines("ERROR: *rows.toml: contract row {'kind': 'core'} is not usable: it has no 'outcome'")


@pytest.mark.usefixtures("stubbed")
@pytest.mark.parametrize(
    ("version", "unprobed", "words"),
    [
        ((11, 1, 3), None, None),
        ((11, 1, 50), None, "newer than all that the contracts were seen with: held to the one of 11.1, the newest"),
        ((7, 2, 22), "it said nothing", "held to the contract of its version: it said nothing"),
    ],
)
def test_a_run_says_whose_contract_a_build_is_held_to(
    pytester: pytest.Pytester,
    monkeypatch: pytest.MonkeyPatch,
    version: tuple[int, int, int],
    unprobed: str | None,
    words: str | None,
) -> None:
    build = SimpleNamespace(**vars(stubs.build(version)) | {"unprobed": unprobed})
    monkeypatch.setattr(cells, "supply_build", lambda settings, cache, progress: build)
    pytester.makepyfile("def test_it(machine): pass")
    result = pytester.runpytest("--spapr-qemu=7.2")
    result.assert_outcomes(passed=1)
    if words is None:
        result.stdout.no_fnmatch_line("spapr: QEMU *contract*")
    else:
        result.stdout.fnmatch_lines(f"spapr: QEMU *, {words}")
