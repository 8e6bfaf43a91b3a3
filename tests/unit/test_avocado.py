"""What a cell is, what its tests come to, and what a night comes to."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from pytest_spapr.avocado.cell import cell_of, variant_cell
from pytest_spapr.avocado.matrix import Parameter, read_matrix
from pytest_spapr.avocado.night import NoResults, Task, merged_junit, read_night
from pytest_spapr.avocado.verdict import judge, read_junit
from pytest_spapr.errors import ConfigError

_ROOT = Path(__file__).parents[2]
_PASSED = "def test_ok(): pass"
_FAILED = "def test_bad(): assert False"
_SKIPPED = "import pytest\n@pytest.mark.skip(reason='no')\ndef test_skipped(): assert False"
_XFAILED = "import pytest\n@pytest.mark.xfail(strict=True)\ndef test_xfailed(): assert False"
_XPASSED = "import pytest\n@pytest.mark.xfail(strict=True)\ndef test_xpassed(): pass"
_ERROR = "import pytest\n@pytest.fixture\ndef broken(): raise OSError\ndef test_broken(broken): pass"
_TEARDOWN = "import pytest\n@pytest.fixture\ndef broken():\n    yield\n    raise OSError\ndef test_broken(broken): pass"
_UNPARSABLE = "def"


class TestVerdicts:
    """From real runs of pytest."""

    @pytest.mark.parametrize(
        ("sources", "result", "reason"),
        [
            ((_PASSED,), "pass", ""),
            ((_PASSED, _FAILED), "fail", "1 failed, 1 passed"),
            ((_SKIPPED,), "skip", "1 skipped"),
            ((_PASSED, _SKIPPED), "warn", "1 skipped, 1 passed"),
            ((_XFAILED,), "warn", "1 xfailed"),
            ((_PASSED, _XFAILED), "warn", "1 xfailed, 1 passed"),
            ((_XPASSED,), "fail", "1 failed"),
            ((_ERROR, _PASSED), "error", "1 error, 1 passed"),
            ((_TEARDOWN,), "error", "1 error"),
            ((_ERROR, _FAILED), "fail", "1 failed, 1 error"),
            ((_UNPARSABLE, _PASSED), "error", "pytest was interrupted"),
            ((), "error", "pytest found no test to run"),
        ],
    )
    def test_a_task_passes_only_where_each_test_passed(
        self, pytester: pytest.Pytester, sources: tuple[str, ...], result: str, reason: str
    ) -> None:
        for number, source in enumerate(sources):
            pytester.makepyfile(**{f"test_{number}": source})
        report = pytester.path / "junit.xml"
        status = pytester.runpytest_inprocess("-p", "no:spapr", f"--junitxml={report}").ret
        verdict = judge(read_junit(report), int(status))
        assert (verdict.result, verdict.reason) == (result, reason)

    @pytest.mark.parametrize(
        ("status", "reason"),
        [
            (0, "pytest ended with status 0 and left no report"),
            (1, "pytest ended with status 1 and left no report"),
            (4, "pytest refused its arguments: what was named cannot be had"),
            (143, "pytest ended with status 143"),
            (-9, "pytest was killed by SIGKILL"),
        ],
    )
    def test_a_run_without_a_report_is_an_error(self, tmp_path: Path, status: int, reason: str) -> None:
        (tmp_path / "half.xml").write_text("<testsuites><testsuite><testca")
        for name in ("none.xml", "half.xml"):
            tally = read_junit(tmp_path / name)
            assert tally is None
            assert (judge(tally, status).result, judge(tally, status).reason) == ("error", reason)

    def test_a_status_that_its_report_does_not_explain_is_an_error(self, tmp_path: Path) -> None:
        report = tmp_path / "junit.xml"
        report.write_text('<testsuites><testsuite><testcase classname="c" name="n"/></testsuite></testsuites>')
        verdict = judge(read_junit(report), 1)
        assert (verdict.result, verdict.reason) == ("error", "pytest ended with status 1, and its report has no failure")

    def test_unplugs_and_known_defects_are_counted(self, tmp_path: Path) -> None:
        report = tmp_path / "junit.xml"
        properties = '<property name="spapr_outcomes" value="pending=1 removed=2"/><property name="spapr_defects" value="a b"/>'
        case = f'<testcase classname="c" name="n"><properties>{properties}</properties></testcase>'
        report.write_text(f"<testsuites><testsuite>{case}{case}</testsuite></testsuites>")
        tally = read_junit(report)
        assert tally is not None
        assert tally.facts() == {
            "states": {"passed": 2},
            "outcomes": {"pending": 2, "removed": 4},
            "defects": {"a": 2, "b": 2},
            "failed": [],
        }


class TestCells:
    def test_a_cells_parameters_are_the_suites_options(self) -> None:
        given = {"tests": ["a.py"], "qemu": "7.2", "image": "debian-12", "kernel_args": "disable_radix", "offline": True}
        cell = cell_of([Parameter("/run", *one) for one in given.items()], "c")
        assert cell.arguments() == [
            "--spapr-qemu=7.2",
            "--spapr-image=debian-12",
            "--spapr-kernel-args=disable_radix",
            "--spapr-offline",
        ]
        assert cell.tests == ("a.py",)
        assert [(one.name, one.options) for one in cell.supplies()] == [
            ("qemu-7.2", {"qemu": "7.2"}),
            ("image-debian-12", {"image": "debian-12"}),
        ]

    def test_marks_say_which_tests(self) -> None:
        cell = cell_of([Parameter("/run", "marks", "spapr_slow"), Parameter("/run", "qemu", "7.2")], "c")
        assert cell.arguments() == ["--spapr-qemu=7.2", "-m", "spapr_slow"]
        assert "marks" not in cell.options

    def test_paths_that_differ_are_different_supplies(self) -> None:
        names = [cell_of([Parameter("/run", "qemu", path)], "c").supplies()[0].name for path in ("/a/b/qemu", "/a-b/qemu")]
        assert names[0] != names[1]
        assert not any(set(name) & set("/;") for name in names)

    @pytest.mark.parametrize(
        ("parameters", "words"),
        [
            ([("marks", True)], "c: marks is True, expected text"),
            ([("qemu", 7.2)], r'c: qemu is 7\.2, expected text. Put it in quotes: qemu: "7\.2"\.'),
            ([("quemu", "7.2")], "c knows no 'quemu'. Allowed: tests, marks, qemu, image, "),
            ([("offline", "yes")], "c: offline is 'yes', expected true or false"),
            ([("tests", "a.py")], "c: tests is 'a.py', expected a list"),
            ([("qemu", "7.2"), ("qemu", "11.1")], r"c: qemu is '7\.2' and '11\.1': a cell can have one of them"),
        ],
    )
    def test_what_is_no_cell_is_said(self, parameters: list[tuple[str, Any]], words: str) -> None:
        with pytest.raises(ConfigError, match=words):
            cell_of([Parameter("/run", *one) for one in parameters], "c")

    def test_what_stands_further_down_wins_and_adds_its_tests(self) -> None:
        above = [Parameter("/run", "tests", ["a.py"]), Parameter("/run", "cpu", "power8")]
        below = [Parameter("/run/mode/own", "tests", ["a.py", "b.py"]), Parameter("/run/mode/own", "cpu", "power9")]
        for one in (above + below, below + above):
            cell = cell_of(one, "c")
            assert (cell.tests, cell.options) == (("a.py", "b.py"), {"cpu": "power9"})

    def test_a_variant_has_the_parameters_of_its_leaves(self) -> None:
        tests = ["/run", "tests", ["a.py"]]
        leaves = [["/run/build/a", [tests, ["/run/build/a", "qemu", "7.2"]]], ["/run/mode/b", [tests]]]
        cell = variant_cell({"variant_id": "v", "variant": leaves})
        assert (cell.options, cell.tests) == ({"qemu": "7.2"}, ("a.py",))
        assert variant_cell(None).options == {}


class TestMatrices:
    @pytest.mark.parametrize("file", sorted(_ROOT.glob("ci/matrix*.yaml")), ids=lambda file: file.stem)
    def test_ours_have_cells_whose_tests_are_there(self, file: Path) -> None:
        matrix = read_matrix(file)
        assert matrix.size() > 1
        for axis, names in matrix.axes.items():
            for name in names:
                cell = cell_of(matrix.parameters({axis: name}), f"{axis}: {name}")
                assert all((_ROOT / test).is_file() for test in cell.tests)

    def test_what_excludes_each_other_is_in_no_cell(self, tmp_path: Path) -> None:
        file = tmp_path / "m.yaml"
        file.write_text(
            """
            build: !mux
              5.2:
                qemu: "5.2"
                !filter-out : /run/mode/new
                !filter-out : /run/mode/newer
              7.2:
                qemu: "7.2"
            accel: !mux
              only:
                accel: tcg
            mode: !mux
              old:
                cpu: power8
              new:
                cpu: power9
              newer:
                cpu: power10
            """
        )
        matrix = read_matrix(file)
        assert matrix.size() == 4
        assert matrix.as_cit().splitlines() == [
            "PARAMETERS",
            "build [5.2, 7.2]",
            "mode [old, new, newer]",
            "CONSTRAINTS",
            "build != 5.2 || mode != new",
            "build != 5.2 || mode != newer",
        ]
        drawn = {"variant_id": "v", "paths": ["/"], "variant": [["/", [["/", "build", "5.2"], ["/", "mode", "old"]]]]}
        leaf = [["/run/build/5.2", "qemu", "5.2"], ["/run/mode/old", "cpu", "power8"], ["/run/accel/only", "accel", "tcg"]]
        (one,) = matrix.chosen([drawn])
        assert (one["variant_id"], one["paths"]) == ("v", ["/"])
        assert sorted(one["variant"][0][1]) == sorted(leaf)

    def test_pairs_need_something_to_choose_from(self, tmp_path: Path) -> None:
        file = tmp_path / "m.yaml"
        file.write_text("build: !mux {a: {qemu: a}, b: {qemu: b}}\nimage: !mux {x: {image: x}}")
        with pytest.raises(ConfigError, match="pairs need two axes with two names"):
            read_matrix(file).as_cit()

    @pytest.mark.parametrize(
        ("text", "words"),
        [
            ("a: [", "is no YAML"),
            ("- a", "expected a mapping"),
            ("tests: [a]", "has no axis"),
            ("build: {x: {qemu: q}}", "build is a mapping: expected the tag !mux"),
            ("build: !mux {x: q}", "build: x: expected a name"),
            ("build: !mux {'a,b': {qemu: q}}", "build: a,b: expected a name without any of"),
            ("build: !mux {x: {y: {qemu: q}}}", "build: x: expected a name"),
            ("build: !mux\n  x:\n    qemu: q\n    !filter-out : /run/mode/y", "!filter-out /run/mode/y: there is no such name"),
        ],
    )
    def test_what_is_no_matrix_is_said(self, tmp_path: Path, text: str, words: str) -> None:
        file = tmp_path / "m.yaml"
        file.write_text(text)
        with pytest.raises(ConfigError, match=words):
            read_matrix(file)


def result(name: str, status: str, directory: Path, reason: str = "", board: dict[str, Any] | None = None) -> dict[str, Any]:
    """Return a task as Avocado writes it down."""
    return {
        "name": name,
        "status": status,
        "fail_reason": reason or "<unknown>",
        "time_elapsed": 2.0,
        "logdir": str(directory),
        "whiteboard": json.dumps(board) if board else "<unknown>",
    }


def night(directory: Path, *tests: dict[str, Any], total: int | None = None) -> Path:
    facts = {
        "job_id": "1a",
        "start": "2026-11-21 20:00",
        "time": 9.0,
        "total": len(tests) if total is None else total,
        "tests": tests,
    }
    (directory / "results.json").write_text(json.dumps(facts))
    return directory


class TestNights:
    @pytest.mark.parametrize("status", ["PASS", "WARN", "SKIP"])
    def test_a_night_is_green_where_nothing_failed(self, tmp_path: Path, status: str) -> None:
        assert read_night(night(tmp_path, result("t", status, tmp_path))).green

    @pytest.mark.parametrize("status", ["FAIL", "ERROR", "INTERRUPTED", "CANCEL"])
    def test_a_night_is_not_green_where_a_task_came_to_no_good_end(self, tmp_path: Path, status: str) -> None:
        found = read_night(night(tmp_path, result("t", "PASS", tmp_path), result("u", status, tmp_path)))
        assert not found.green
        assert [task.name for task in found.tasks if not task.fine] == ["u"]

    def test_a_task_without_its_image_was_not_skipped(self, tmp_path: Path) -> None:
        found = read_night(night(tmp_path, result("t", "SKIP", tmp_path, "Dependency was not fulfilled.")))
        assert not found.green
        assert found.statuses() == {"NOT RUN": 1}

    @pytest.mark.parametrize("tests", [0, 1])
    def test_a_night_whose_tasks_were_not_all_run_is_not_green(self, tmp_path: Path, tests: int) -> None:
        found = read_night(night(tmp_path, *[result("t", "PASS", tmp_path)] * tests, total=tests + 1))
        assert not found.green
        assert found.statuses()["NOT RUN"] == 1

    def test_what_tests_came_to_is_added_up(self, tmp_path: Path) -> None:
        board = {"states": {"passed": 2}, "outcomes": {"removed": 3}, "defects": {}, "failed": []}
        found = read_night(night(tmp_path, *[result("t", "PASS", tmp_path, board=board)] * 2))
        assert (found.sum("states"), found.sum("outcomes")) == ({"passed": 4}, {"removed": 6})

    @pytest.mark.parametrize("text", [None, "{"])
    def test_a_job_without_results_is_an_error(self, tmp_path: Path, text: str | None) -> None:
        if text is not None:
            (tmp_path / "results.json").write_text(text)
        with pytest.raises(NoResults, match=r"the job left no results.*job\.log"):
            read_night(tmp_path)


def test_the_merged_junit_has_each_test_and_each_task_without_one(tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    whole.mkdir()
    case = '<testcase classname="c" name="n"><failure message="no"/></testcase>'
    (whole / "junit.xml").write_text(f'<testsuites><testsuite name="pytest" tests="1">{case}</testsuite></testsuites>')
    tasks = [
        Task("whole", "FAIL", "1 failed", 1.0, whole),
        # What it had by then says nothing of the tests that were not run.
        Task("given up", "INTERRUPTED", "Test interrupted: Timeout reached", 1.0, whole),
        Task("without", "SKIP", "Dependency was not fulfilled.", 0.0, tmp_path),
    ]
    root = ElementTree.fromstring(merged_junit(tasks))
    seen = {suite.get("name"): [child.tag for case in suite for child in case] for suite in root}
    assert seen == {"whole": ["failure"], "given up": ["error"], "without": ["error"]}
