"""The record that a run leaves of what it drove QEMU's connectors through."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pytest_spapr import cli

from .test_reports import stub_conftest

pytestmark = pytest.mark.usefixtures("stubbed")

TRACES = """
from pytest_spapr.qemu.trace import parse_drc_event
from pytest_spapr.timeline import Lane

def trace(machine, *lines):
    for line in lines:
        machine.timeline.record(Lane.DRC, line, parse_drc_event(line))

def test_at_once(machine):
    trace(machine, "spapr_drc_attach drc: 0x10000001", "spapr_drc_unplug_request drc: 0x10000001")

def test_two_machines(launch_machine):
    for machine in (launch_machine(), launch_machine(image=None)):
        trace(machine, "spapr_drc_attach drc: 0x40000008", "spapr_drc_reset drc: 0x40000008")

def test_no_machine():
    pass
"""
ONCE = {"CPU": {"empty": {"attach": 1}, "unusable": {"unplug": 1}}, "PCI": {"empty": {"attach": 2}, "power-on": {"reset": 2}}}


def record(pytester: pytest.Pytester) -> Any:
    (path,) = (pytester.path / "artefacts").glob("*/drc-coverage-*.json")
    return json.loads(path.read_text())


def test_a_run_leaves_one_record_if_it_is_asked_for(pytester: pytest.Pytester, capsys: pytest.CaptureFixture[str]) -> None:
    pytester.makepyfile(TRACES)
    result = pytester.runpytest("--spapr-coverage")
    result.assert_outcomes(passed=3)
    result.stdout.fnmatch_lines("connectors * *drc-coverage-*.json")
    left = record(pytester)
    assert left["drc"] == ONCE
    assert left["tested"] == "QEMU 7.2.22 (Debian 1:7.2), Linux 6.1.0-50-powerpc64le, tcg"
    capsys.readouterr()
    assert cli.main(["coverage", "--drc", str(pytester.path / "artefacts"), "--floor", "4"]) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("4 of ")


def test_else_it_leaves_nothing(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(TRACES)
    result = pytester.runpytest()
    result.assert_outcomes(passed=3)
    result.stdout.no_fnmatch_line("connectors *")
    assert not (pytester.path / "artefacts").exists()


def test_a_run_without_machines_leaves_none(pytester: pytest.Pytester) -> None:
    pytester.makepyfile("def test_it(): pass")
    pytester.runpytest("--spapr-coverage").assert_outcomes(passed=1)
    assert not (pytester.path / "artefacts").exists()


def test_the_record_of_all_workers_is_one(pytester: pytest.Pytester) -> None:
    pytest.importorskip("xdist")
    stub_conftest(pytester)
    pytester.makepyfile(test_one=TRACES, test_two=TRACES)
    pytester.runpytest_subprocess("-n2", "--spapr-coverage").assert_outcomes(passed=6)
    twice = {
        name: {state: {what: 2 * count for what, count in table.items()} for state, table in states.items()}
        for name, states in ONCE.items()
    }
    assert record(pytester)["drc"] == twice


def test_a_record_that_cannot_be_written_fails_the_run(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(TRACES)
    Path(pytester.path / "artefacts").write_text("a file, not a directory")
    result = pytester.runpytest("--spapr-coverage")
    result.assert_outcomes(passed=3)
    assert result.ret == pytest.ExitCode.INTERNAL_ERROR
    result.stdout.fnmatch_lines("connectors * not on record: *artefacts*")
