"""The checklist and the tests that say what they cover."""

from __future__ import annotations

import json
from itertools import groupby
from pathlib import Path

import pytest

from pytest_spapr import cli
from pytest_spapr.cli import coverage
from pytest_spapr.coverage.scenarios import State, read_scenarios
from pytest_spapr.errors import ConfigError

OWN = Path(__file__).resolve().parents[1]

CHECKLIST = """
["Cores"]
C01.title = "one core"
C02.title = "two cores"
C02.left = "the second"
C03.title = "three cores"
C04.title = "a thousand cores"
C04.reason = "no such host"

["All"]
X01.title = "everything"
X01.exempt = "nothing"
"""
TESTS = '''
"""Not a test's: what it says is no claim. C03."""

def test_one():
    """C01: it comes."""

class TestMany:
    """Of many."""

    def test_two(self):
        """C01, C02."""

    def test_none(self):
        """Shows C03, but does not begin with it."""

async def test_all():
    """
    X01: and a line of its own.
    """
'''


def suite(tmp_path: Path, tests: str = TESTS, checklist: str = CHECKLIST) -> Path:
    """Write a suite of tests and return its directory."""
    directory = tmp_path / "tests"
    (directory / "some").mkdir(parents=True)
    (directory / "some" / "test_it.py").write_text(tests)
    (directory / "checklist.toml").write_text(checklist)
    return directory


def docstring(text: str) -> str:
    return f'def test_it():\n    """{text}"""\n'


def test_the_suite_and_its_checklist_fit() -> None:
    ids = [one.entry.id for one in read_scenarios(OWN)]
    assert len(set(ids)) == len(ids)
    numbers = {letter: [int(name[1:]) for name in names] for letter, names in groupby(sorted(ids), key=lambda name: name[0])}
    assert {letter: sorted(found) == list(range(1, max(found) + 1)) for letter, found in numbers.items()} == dict.fromkeys(
        "CMPSX", True
    )


def test_what_covers_what(tmp_path: Path) -> None:
    found = {one.entry.id: (one.state, one.tests) for one in read_scenarios(suite(tmp_path))}
    one, two = "tests/some/test_it.py::test_one", "tests/some/test_it.py::TestMany::test_two"
    assert found == {
        "C01": (State.COVERED, (one, two)),
        "C02": (State.PARTLY, (two,)),
        "C03": (State.OPEN, ()),
        "C04": (State.NOT_HERE, ()),
        "X01": (State.COVERED, ("tests/some/test_it.py::test_all",)),
    }


def test_a_range_is_each_id_that_it_spans(tmp_path: Path) -> None:
    directory = suite(tmp_path, docstring("C01-C03, X01: all."))
    assert [one.entry.id for one in read_scenarios(directory) if one.tests] == ["C01", "C02", "C03", "X01"]


@pytest.mark.parametrize(
    ("tests", "says"),
    [
        (docstring("C99: no such id."), r"tests/some/test_it.py:2: the checklist has no C99: C99: no such id\."),
        (docstring("C01-C77: so many."), "test_it.py:2: the checklist has no C77"),
        (docstring("C03-C01: backwards."), "test_it.py:2: C03-C01 is no range"),
        (docstring("C01-X01: of two kinds."), "test_it.py:2: C01-X01 is no range"),
        (docstring("C01 and C02."), "test_it.py:2: its ids cannot be read"),
        (docstring("C01,C02."), "test_it.py:2: its ids cannot be read"),
        (docstring("C1: short."), "test_it.py:2: its ids cannot be read"),
        (docstring("C04."), "test_it.py:2: tests/some/test_it.py::test_it covers C04, which cannot exist: no such host"),
        (docstring("C01."), "C02: something of it is said to be left, and no test names it"),
        (docstring("C02.").replace("test_it", "helper"), "test_it.py:2: only a test's docstring can begin with ids: C02"),
        ('"""C02: a module."""', "test_it.py:1: only a test's docstring can begin with ids"),
        ('class TestIt:\n    """C02: a class."""', "test_it.py:2: only a test's docstring can begin with ids"),
        ("def test_it(:", "test_it.py cannot be read"),
    ],
)
def test_what_does_not_fit_is_told_with_its_place(tmp_path: Path, tests: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        read_scenarios(suite(tmp_path, tests))


def test_all_that_does_not_fit_is_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as told:
        read_scenarios(suite(tmp_path, docstring("C98.") + docstring("C99.")))
    assert [line.split(" ")[0] for line in str(told.value).splitlines()[1:]] == [f"tests/some/test_it.py:{n}:" for n in (2, 4)]


@pytest.mark.parametrize(
    ("checklist", "says"),
    [
        ("C01", "is not TOML"),
        ('C01 = "loose"', "C01 is 'loose': expected a title"),
        ('["Cores"]\nC01.reason = "because"', "expected a title"),
        ('["Cores"]\nC01.title = " "', "expected a title"),
        ('["Cores"]\nC01.title = "one"\nC01.why = "because"', "expected a title, and of reason, exempt, left"),
        ('["Cores"]\nC01.title = "one"\n["All"]\nC01.title = "one"', "C01 stands under 'Cores' and under 'All'"),
        ('["Cores"]\nC01.title = "one"\nC01.reason = "none"\nC01.left = "all"', "C01 has a reason why it cannot exist at all"),
    ],
)
def test_a_bad_checklist_is_told(tmp_path: Path, checklist: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        read_scenarios(suite(tmp_path, "", checklist))


def test_the_command_shows_each_id_and_fails_while_one_is_open(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    directory = str(suite(tmp_path))
    assert cli.main(["coverage", "--tests", directory]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[:3] == ["Cores", "  C01  covered   one core", " " * 16 + "tests/some/test_it.py::test_one"]
    assert "  C03  open      three cores" in lines
    assert " " * 16 + "cannot exist: no such host" in lines
    assert lines[-1] == "5 ids: 2 covered, 1 partly, 1 open, 1 not here"
    assert cli.main(["coverage", "--tests", directory, "--missing"]) == 1
    shown = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in shown if line.startswith(("  C", "  X"))] == ["C02", "C03"]
    assert shown[-1] == lines[-1]


def test_the_command_succeeds_when_none_is_open(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checklist = CHECKLIST.replace('C02.left = "the second"\n', "")
    directory = str(suite(tmp_path, docstring("C01-C03, X01."), checklist))
    assert cli.main(["coverage", "--tests", directory]) == 0
    assert cli.main(["coverage", "--tests", directory, "--missing"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "5 ids: 4 covered, 0 partly, 0 open, 1 not here"


def test_json_has_all_of_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["coverage", "--tests", str(suite(tmp_path)), "--json"]) == 1
    told = json.loads(capsys.readouterr().out)
    assert told["counts"] == {"covered": 2, "partly": 1, "open": 1, "not here": 1}
    assert [one["id"] for one in told["ids"]] == ["C01", "C02", "C03", "C04", "X01"]
    assert told["ids"][3] == {
        "id": "C04",
        "theme": "Cores",
        "title": "a thousand cores",
        "state": "not here",
        "reason": "no such host",
        "tests": [],
    }


@pytest.mark.parametrize(
    ("directory", "says"),
    [("nonesuch", "is no directory: give the tests of a checkout"), (".", "checklist.toml cannot be read: No such file")],
)
def test_bad_input_is_status_2(tmp_path: Path, directory: str, says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["coverage", "--tests", str(tmp_path / directory)]) == 2
    assert says in capsys.readouterr().err


def test_a_package_without_its_tests_says_what_it_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(coverage, "__file__", str(tmp_path / "site-packages" / "pytest_spapr" / "cli" / "coverage.py"))
    assert cli.main(["coverage"]) == 2
    assert "installed without its tests, which say what they cover: give --tests=DIR" in capsys.readouterr().err
