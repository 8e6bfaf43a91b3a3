"""Whether a run on the runner proved what it is for: tests passed, on machines that KVM ran."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple
from xml.etree import ElementTree

from pytest_spapr.avocado.verdict import state_of
from pytest_spapr.errors import SpaprError

#: The test that asks QEMU for it: query-kvm of the machine itself.
PROOF: Final = "test_qemu_runs_the_machine_on_the_accelerator_that_was_chosen"

_ACCELERATOR: Final = "spapr_accel"
_KVM: Final = "kvm"
# A test that meets a known defect is expected to fail.
_FINE: Final = ("passed", "xfailed")


class NoReport(SpaprError):
    """pytest left no report, or none that can be read."""


class Case(NamedTuple):
    """One test of the report.

    :ivar outcome: as ``state_of`` has it. :ivar accelerator: of its machines, None without any.
    """

    name: str
    seconds: float
    outcome: str
    accelerator: str | None


def read(junit: Path) -> list[Case]:
    """Return the tests of a report by pytest. :raises NoReport: it is none."""
    try:
        # Of our own runner: no entities of others are in it.
        root = ElementTree.parse(junit).getroot()  # noqa: S314
    except (OSError, ElementTree.ParseError) as error:
        raise NoReport(f"{junit} is no report: {error}. What pytest said is beside it, in pytest.txt.") from error
    return [_case(element) for element in root.iter("testcase")]


def complaints(cases: Sequence[Case], expected: Sequence[str], status: int) -> list[str]:
    """Return why the run does not prove what it should; nothing if it does.

    :param expected: tests that were asked for, as pytest was given them. :param status: pytest's exit status.
    """
    found = []
    if status:
        found.append(f"pytest ended with status {status}")
    found += [f"{case.name}: {case.outcome}" for case in cases if case.outcome not in _FINE]
    found += [
        f"{case.name}: its machine was run by {case.accelerator}, not by KVM"
        for case in cases
        if case.accelerator not in (None, _KVM)
    ]
    for test in expected:
        name = test.rpartition("::")[2]
        if "::" in test and not any(case.name == name or case.name.startswith(f"{name}[") for case in cases):
            found.append(f"{name} was not run")
    if not any(case.name == PROOF and case.outcome == "passed" and case.accelerator == _KVM for case in cases):
        found.append("no query-kvm of a machine said that KVM runs it")
    return found


def _case(element: ElementTree.Element) -> Case:
    found = (one.get("value") for one in element.iter("property") if one.get("name") == _ACCELERATOR)
    return Case(element.get("name", ""), float(element.get("time", 0)), state_of(element), next(found, None))
