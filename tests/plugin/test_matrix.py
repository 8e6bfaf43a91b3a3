"""Several QEMU builds and guest images in one run."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pytest

from pytest_spapr import cells, fixtures, rig, supply
from pytest_spapr.config import Settings

from . import stubs

ROOT = Path(__file__).parents[2]
TWO = ("--spapr-qemu=7.2", "--spapr-qemu=11.1")
FOUR = (*TWO, "--spapr-image=debian-12", "--spapr-image=debian-13")
TESTS = """
    def test_one(machine): machine.unplug("removed")
    def test_unrelated(): pass
    def test_two(machine): machine.unplug("refused")
    """


def build(settings: Settings, cache: object, progress: object) -> Any:
    major, minor = (settings.qemu.value or "9.9").split(".")
    return stubs.build((int(major), int(minor), 0))


def image(settings: Settings, cache: object, progress: object) -> Any:
    return stubs.image(settings.image.value or "debian-12")


def put_in_place(put: Callable[[object, str, object], None] = setattr) -> None:
    """Have builds and images of any name; called by the conftest of a process of its own too."""
    put(cells, "supply_build", build)
    put(cells, "supply_image", image)
    put(cells, "check_recipe", lambda settings: None)
    put(rig, "Starter", stubs.StubStarter)
    put(fixtures, "harness", stubs.harness)


@pytest.fixture(autouse=True)
def in_place(monkeypatch: pytest.MonkeyPatch) -> None:
    put_in_place(monkeypatch.setattr)


@pytest.fixture
def supplied(monkeypatch: pytest.MonkeyPatch) -> list[str | None]:
    """What the runs inside are supplied with, in order."""
    found: list[str | None] = []

    def note_build(settings: Settings, cache: object, progress: object) -> Any:
        found.append(settings.qemu.value)
        return build(settings, cache, progress)

    def note_image(settings: Settings, cache: object, progress: object) -> Any:
        found.append(settings.image.value)
        return image(settings, cache, progress)

    monkeypatch.setattr(cells, "supply_build", note_build)
    monkeypatch.setattr(cells, "supply_image", note_image)
    return found


def ran(result: pytest.RunResult) -> list[str]:
    """Return the tests that passed, in order."""
    return [line.split()[0].partition("::")[2] for line in result.outlines if " PASSED" in line]


def test_each_test_runs_for_each_cell_those_of_a_cell_together(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(test_a="def test_it(machine): pass", test_b="def test_it(guest): pass")
    result = pytester.runpytest("-v", *FOUR)
    result.assert_outcomes(passed=8)
    ids = ["7.2-debian-12", "7.2-debian-13", "11.1-debian-12", "11.1-debian-13"]
    assert ran(result) == [f"test_it[{name}]" for name in ids for _file in "ab"]


def test_what_tests_get_is_of_their_cell(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        def test_it(request, machine, qemu_build, guest_image, contract, spapr_harness):
            named = f"{qemu_build.name[:-2]}-{guest_image.name}"
            assert request.node.name == f"test_it[{named}]"
            assert machine.build is qemu_build is spapr_harness.build
            assert machine.image is guest_image
        """
    )
    pytester.runpytest(*FOUR).assert_outcomes(passed=4)


def test_one_cell_leaves_names_alone(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(TESTS)
    result = pytester.runpytest("-v", "--spapr-qemu=7.2", "--spapr-image=debian-13")
    assert ran(result) == ["test_one", "test_unrelated", "test_two"]
    result.stdout.fnmatch_lines("tested  * QEMU 7.2.0 (Debian 1:7.2), Linux 6.1.0-50-powerpc64le, tcg")


def test_a_tests_own_parameters_come_behind_the_cell(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        import pytest

        @pytest.mark.parametrize("kind", ["core", "dimm"])
        def test_it(machine, kind): pass
        """
    )
    result = pytester.runpytest("-v", *TWO)
    assert ran(result) == [f"test_it[{cell}-debian-12-{kind}]" for cell in ("7.2", "11.1") for kind in ("core", "dimm")]


def test_tests_can_be_chosen_by_cell_and_no_other_is_supplied(pytester: pytest.Pytester, supplied: list[str | None]) -> None:
    pytester.makepyfile("def test_one(machine): pass\ndef test_two(machine): pass")
    pytester.runpytest("-k", "11.1 and one", *FOUR).assert_outcomes(passed=2, deselected=6)
    assert supplied == ["11.1", "debian-12", "debian-13"]


def test_each_build_and_image_is_supplied_once(pytester: pytest.Pytester, supplied: list[str | None]) -> None:
    pytester.makepyfile(TESTS)
    pytester.runpytest(*FOUR).assert_outcomes(passed=9)
    assert supplied == ["7.2", "debian-12", "debian-13", "11.1"]


def test_several_from_the_environment_and_an_ini_file(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPAPR_QEMU", "7.2, 11.1")
    pytester.makeini("[pytest]\nspapr_image =\n    debian-12\n    debian-13")
    pytester.makepyfile("def test_it(machine): pass")
    result = pytester.runpytest()
    result.assert_outcomes(passed=4)
    result.stdout.fnmatch_lines(
        "spapr: qemu 7.2 and 11.1 (environment), image debian-12 and debian-13 (ini file)",
    )


def test_a_known_defect_is_an_xfail_with_the_builds_that_have_it(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        import pytest

        @pytest.mark.spapr_defect("tcg-core-removal")
        def test_it(qemu_build): assert qemu_build.version >= (11, 0, 0)
        """
    )
    pytester.runpytest(*TWO).assert_outcomes(passed=1, xfailed=1)


def test_the_summary_tells_of_each_cell(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(TESTS, test_more="def test_more(machine, qemu_build): assert qemu_build.version < (8, 0, 0)")
    result = pytester.runpytest(*TWO)
    result.assert_outcomes(passed=6, failed=1)
    result.stdout.fnmatch_lines(
        [
            "spapr: 7.2-debian-12: QEMU 7.2.0 (Debian 1:7.2), /somewhere/qemu-system-ppc64, tcg, image debian-12, Linux 6.1.0-*",
            "spapr: 11.1-debian-12: QEMU 11.1.0 (Debian 1:7.2), *",
            "*= spapr =*",
            "tested             7.2-debian-12: QEMU 7.2.0 (Debian 1:7.2), Linux 6.1.0-50-powerpc64le, tcg",
            "                     3 passed; attempts 1 refused, 1 removed",
            "                   11.1-debian-12: QEMU 11.1.0 (Debian 1:7.2), Linux 6.1.0-50-powerpc64le, tcg",
            "                     1 failed, 2 passed; attempts 1 refused, 1 removed",
            "machines           6 started; *",
            "attempts           2 refused, 2 removed",
        ],
        consecutive=False,
    )


def test_junit_names_the_cell(pytester: pytest.Pytester) -> None:
    pytester.makepyfile("def test_it(machine): pass")
    pytester.runpytest("--junitxml=junit.xml", *TWO)
    cases = ElementTree.parse(pytester.path / "junit.xml").iter("testcase")
    found = [entry.get("value") for case in cases for entry in case.iter("property") if entry.get("name") == "spapr_cell"]
    assert found == ["7.2-debian-12", "11.1-debian-12"]


def test_workers_run_all_cells_and_one_summary_tells_of_them(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("xdist")
    pytester.makeconftest("from tests.plugin import test_matrix\ntest_matrix.put_in_place()")
    pytester.makepyfile(TESTS)
    # Before site-packages, where others leave packages called `tests`: avocado's result-html 113 does.
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    result = pytester.runpytest_subprocess("-n2", "--dist=worksteal", *FOUR)
    result.assert_outcomes(passed=9)
    lines = [line.strip() for line in result.outlines]
    assert lines.count("2 passed; attempts 1 refused, 1 removed") == 4


class StubAhead:
    """Writes down what is prepared, and in whose harness."""

    acts: ClassVar[list[str]] = []

    def __init__(self, starter: object, shared: Any, slots: object) -> None:
        self._build = shared.build.name

    def prepare(self, spec: object, image: Any) -> None:
        self.acts.append(f"{self._build} {image.name}")

    def take(self, spec: object, image: object) -> None: ...

    def drop(self) -> None:
        self.acts.append(f"{self._build} drop")


def test_only_machines_of_the_running_cell_are_prepared(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fixtures, "Ahead", StubAhead)
    StubAhead.acts.clear()
    pytester.makepyfile("def test_one(machine): pass\ndef test_two(machine): pass")
    pytester.runpytest(*TWO).assert_outcomes(passed=4)
    assert StubAhead.acts == ["7.2.0 debian-12", "7.2.0 drop", "11.1.0 debian-12", "11.1.0 drop"]


@pytest.mark.parametrize(("arguments", "prepared"), [("launch_machine", 0), ("machine", 1)])
def test_machines_are_prepared_where_the_fixture_is_ours(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, arguments: str, prepared: int
) -> None:
    monkeypatch.setattr(fixtures, "Ahead", StubAhead)
    StubAhead.acts.clear()
    pytester.makepyfile(
        f"""
        import pytest

        @pytest.fixture
        def machine({arguments}): return {arguments}

        def test_one(machine): pass
        def test_two(machine): pass
        """
    )
    pytester.runpytest("--spapr-qemu=7.2").assert_outcomes(passed=2)
    assert StubAhead.acts.count("7.2.0 debian-12") == prepared


def test_a_test_whose_cell_pytest_cannot_see_says_what_to_do(pytester: pytest.Pytester) -> None:
    pytester.makepyfile("def test_it(request): request.getfixturevalue('machine')")
    pytester.runpytest("--spapr-qemu=7.2").assert_outcomes(passed=1)
    result = pytester.runpytest(*TWO)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines("*this run is for 2 pairs of QEMU build and guest image*name a fixture of pytest-spapr*")


def test_an_unknown_name_among_several_ends_the_run(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cells, "check_recipe", supply.check_recipe)
    pytester.makepyfile("def test_it(machine): pass\ndef test_without_image(qemu_build): pass")
    result = pytester.runpytest("--spapr-image=debian-12", "--spapr-image=fedora-99", "--spapr-offline")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines("ERROR: *fedora-99*")


def test_a_bad_mark_is_told_once(pytester: pytest.Pytester) -> None:
    pytester.makepyfile("import pytest\n@pytest.mark.spapr(cores=2)\ndef test_it(machine): pass")
    result = pytester.runpytest(*FOUR)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert "\n".join(result.errlines).count("knows no 'cores'") == 1
