"""The nightly's own part: its history, the last green night, the trend, and words for what cannot be run."""

from __future__ import annotations

import json
import os
import tempfile
from dataclasses import asdict, replace
from itertools import combinations, product
from pathlib import Path

import filelock
import pytest

from ci.night import __main__ as nightly
from ci.night import trend
from ci.night.history import History, Line
from ci.night.job import ROOT, Avocado
from pytest_spapr.avocado.cell import variant_cell
from pytest_spapr.avocado.matrix import read_matrix
from pytest_spapr.avocado.night import Night, Task
from pytest_spapr.errors import ConfigError

LINE = Line(
    job="1a",
    directory="job-1",
    matrix="matrix.yaml",
    start="2026-11-21 20:00:00.123",
    seconds=600.0,
    green=True,
    statuses={"PASS": 3},
    states={"passed": 30},
    outcomes={"removed": 40, "pending": 2},
    defects={},
    failed=[],
)


def test_what_stays_of_a_night_can_be_written(tmp_path: Path) -> None:
    task = Task("a.py;cell", "FAIL", "1 failed", 1.0, tmp_path, {"states": {"failed": 1}, "outcomes": {"removed": 2}})
    night = Night("1a", "2026-11-21 20:00", 1.0, 2, (task,))
    History(tmp_path).add(Line.of(night, tmp_path / "job-1", "matrix.yaml", 5.0))
    (line,) = History(tmp_path).lines("matrix.yaml")
    assert (line.green, line.statuses, line.states, line.failed) == (
        False,
        {"FAIL": 1, "NOT RUN": 1},
        {"failed": 1},
        ["a.py;cell"],
    )


def test_the_last_green_night_is_one_of_the_same_matrix_that_is_still_there(tmp_path: Path) -> None:
    history = History(tmp_path)
    lines = [replace(LINE, job=job, directory=f"job-{job}") for job in "12345"]
    lines[1] = replace(lines[1], directory="job-gone")
    lines[2] = replace(lines[2], matrix="other.yaml")
    lines[3] = replace(lines[3], green=False)
    for line in lines:
        history.add(line)
        if "gone" not in line.directory:
            (tmp_path / line.directory).mkdir()
    assert history.last_green("matrix.yaml", before="5") == tmp_path / "job-1"
    assert history.last_green("matrix.yaml", before="") == tmp_path / "job-5"
    assert history.last_green("none.yaml", before="") is None
    assert [line.job for line in history.lines("matrix.yaml")] == ["1", "2", "4", "5"]


@pytest.mark.parametrize("text", ["{", json.dumps({**asdict(LINE), "more": 1}), "{}"])
def test_a_history_that_is_none_is_said(tmp_path: Path, text: str) -> None:
    History(tmp_path).add(LINE)
    with (tmp_path / "nights.jsonl").open("a") as stream:
        stream.write(f"{text}\n")
    with pytest.raises(ConfigError, match=r"nights\.jsonl:2 is no night: .* Remove the line"):
        History(tmp_path).lines("matrix.yaml")


def test_the_trend_says_what_is_new(tmp_path: Path) -> None:
    bad = replace(LINE, job="2", directory="job-2", green=False, statuses={"PASS": 2, "FAIL": 1}, failed=["a.py;<cell>"])
    page = trend.page("matrix.yaml", [LINE, bad, replace(LINE, job="3", directory="job-3")])
    rows = [line for line in page.splitlines() if line.startswith("<tr class")]
    assert ['class="green"' in row for row in rows] == [True, False, True]
    assert "fine again: a.py;&lt;cell&gt;" in rows[0]
    assert "fails: a.py;&lt;cell&gt;" in rows[1]
    assert "fails" not in rows[2]
    # Two thirds of the bar, and one.
    assert 'width="160.0"' in rows[1]
    assert 'x="160.0" width="80.0"' in rows[1]
    assert "<td>a.py;&lt;cell&gt;</td><td>1</td>" in page


def test_the_trend_is_one_page(tmp_path: Path) -> None:
    page = trend.page("m", [replace(LINE, job=str(number)) for number in range(100)])
    assert page.count("<tr class") == trend.NIGHTS


@pytest.mark.parametrize(
    ("matrix", "words"),
    [
        (None, "m.yaml cannot be read: No such file or directory"),
        ("build: !mux {x: {quemu: q}}", "build: x knows no 'quemu'"),
        ("build: !mux {x: {qemu: q}}", "m.yaml names no tests"),
        ("tests: [tests/none.py]\nbuild: !mux {x: {qemu: q}}", "tests: there is no tests/none.py"),
    ],
)
def test_what_cannot_be_run_is_said_at_once(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], matrix: str | None, words: str
) -> None:
    file = tmp_path / "m.yaml"
    if matrix is not None:
        file.write_text(matrix)
    assert nightly.main([f"--matrix={file}", f"--results={tmp_path / 'results'}"]) == 2
    told = capfd.readouterr().err
    assert told.startswith("ci/nightly: ")
    assert words in told


def test_two_nightlies_do_not_write_to_one_place(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with filelock.FileLock(tmp_path / "lock"):
        assert nightly.main([f"--results={tmp_path}"]) == 2
    assert "another nightly writes there" in capfd.readouterr().err


def test_a_place_that_cannot_be_written_to_is_told(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    # Not by its mode: root may write anywhere.
    (tmp_path / "lock").mkdir()
    assert nightly.main([f"--results={tmp_path}"]) == 2
    assert f"--results={tmp_path}: cannot be written to: Is a directory." in capfd.readouterr().err


@pytest.mark.parametrize("name", ["matrix", "matrix-full"])
def test_each_pair_of_names_is_in_a_cell_and_none_that_is_excluded(tmp_path: Path, name: str) -> None:
    """Made by Avocado itself, once: its varianter draws lots."""
    matrix = read_matrix(ROOT / "ci" / f"{name}.yaml")
    avocado = Avocado(results=tmp_path, timeout=1, jobs=1)
    file = avocado.pairs(matrix)
    text = file.read_text()
    assert avocado.pairs(matrix).read_text() == text
    (drawn,) = tmp_path.glob("pairs-*.drawn.json")
    cells = [{axis: value for _, leaf in one["variant"] for _, axis, value in leaf} for one in json.loads(drawn.read_text())]
    seen = {frozenset(pair) for cell in cells for pair in combinations(cell.items(), 2)}
    excluded = {frozenset(pair) for pair in matrix.excluded}
    axes = [[(axis, value) for value in names] for axis, names in matrix.axes.items() if len(names) > 1]
    wanted = {frozenset(pair) for one, other in combinations(axes, 2) for pair in product(one, other)}
    assert wanted - excluded <= seen
    assert not excluded & seen
    assert len(cells) < matrix.size()
    for variant in json.loads(text):
        assert variant_cell(variant).options["accel"] == "tcg"


def test_a_temporary_directory_with_too_long_a_name_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Tasks could tell nobody how they go, and Avocado would wait for ever."""
    long = tmp_path / ("x" * 100)
    long.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(long))
    assert nightly.main([f"--results={tmp_path / 'results'}"]) == 2
    limit = 107 - len("/avocado_12345678/.status_server.sock") - len(f"/spapr-night-{os.getpid()}-12345678")
    assert f"set TMPDIR to a directory of at most {limit} bytes" in capfd.readouterr().err
    assert list(long.iterdir()) == []


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--slot=none.json"], "--slot=none.json: expected a JSON file"),
        (["--slot={}/slot.json"], "--status=None: expected HOST:PORT"),
        (["--slot={}/slot.json", "--status=8888"], "--status=8888: expected HOST:PORT"),
        (["--slot={}/slot.json", "--status=a:8888", "--timeout=231"], "with --slot a task may take 230 minutes at most"),
    ],
)
def test_hosts_that_cannot_be_had_are_said_at_once(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], more: list[str], words: str
) -> None:
    (tmp_path / "slot.json").write_text("{}")
    assert nightly.main([f"--results={tmp_path / 'results'}", *(word.format(tmp_path) for word in more)]) == 2
    assert words in capfd.readouterr().err
