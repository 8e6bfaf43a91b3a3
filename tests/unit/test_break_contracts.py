"""The script that breaks the contracts: what it breaks, who notices, and what it writes down."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import tempfile
import tomllib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from ci.contracts import __main__ as contracts
from ci.contracts import record
from ci.contracts.facts import broken, described, kept
from ci.contracts.overlay import toml
from ci.contracts.replay import UNIT_TEST, OnRecord, judge, keep, on_record, read
from ci.faults import __main__ as faults
from pytest_spapr.hotplug.attempt import Attempt
from pytest_spapr.hotplug.outcome import Kind
from pytest_spapr.hotplug.rows import Row, packaged_rows

ROWS = packaged_rows()
REMOVAL = next(row for row in ROWS if row.subject == (Kind.CORE, "removal"))


def row_id(row: Row) -> str:
    return "-".join(row.subject)


def write(directory: Path, row: Row, *attempts: Attempt) -> None:
    """Record attempts as a test does that compares them."""
    stream = io.StringIO()
    with record.overheard("test_it", stream):
        for attempt in attempts:
            assert attempt == row.expectation
    (directory / "1.jsonl").write_text(stream.getvalue())


def test_no_two_rows_promise_the_same_in_the_same_words() -> None:
    """Else an attempt would be taken for one of the other row."""
    promises = [json.dumps(described(row.expectation), sort_keys=True) for row in ROWS]
    assert len(set(promises)) == len(ROWS)


@pytest.mark.parametrize("row", ROWS, ids=row_id)
def test_every_fact_of_a_row_is_broken(row: Row) -> None:
    """An attempt that keeps the promise is no longer one that keeps the broken one."""
    facts = dict(broken(row.expectation))
    assert all(kept(row.expectation) != wrong for wrong in facts.values())
    assert len(facts) == 8 + 2 * len(row.expectation.events) + (len(row.expectation.events) > 1)


def test_a_recorded_attempt_speaks_for_its_row_and_no_other(tmp_path: Path) -> None:
    write(tmp_path, REMOVAL, kept(REMOVAL.expectation, "core1"))
    verdicts = judge(ROWS, read(tmp_path), ())
    assert [verdict.row for verdict in verdicts if verdict.live] == [REMOVAL]
    [verdict] = [verdict for verdict in verdicts if verdict.live]
    assert verdict.tests == ["test_it"]
    assert verdict.noticed["number of DEVICE_DELETED"] == ["test_it"]


def test_a_fact_that_no_test_looks_at_is_found(tmp_path: Path) -> None:
    write(tmp_path, REMOVAL, replace(kept(REMOVAL.expectation), waiting=None))
    [verdict] = judge([REMOVAL], read(tmp_path), ())
    assert verdict.unnoticed == ["waiting"]


def test_what_differs_is_not_recorded_and_nothing_is_heard_afterwards() -> None:
    stream = io.StringIO()
    other = replace(kept(REMOVAL.expectation), reply="Not today")
    with record.overheard("test_it", stream):
        assert other != REMOVAL.expectation
        assert REMOVAL.expectation != "a word"
    assert kept(REMOVAL.expectation) == REMOVAL.expectation
    assert stream.getvalue() == ""


@pytest.mark.parametrize("row", ROWS, ids=row_id)
def test_a_broken_row_can_be_written_for_a_run(row: Row) -> None:
    for _, wrong in [("none", row.expectation), *broken(row.expectation)]:
        [entry] = tomllib.loads(toml(wrong))["row"]
        if wrong.guest:
            assert described(Row.parse(entry).expectation) == described(wrong)


def test_a_row_that_nobody_speaks_for_could_be_anything() -> None:
    [verdict] = judge([REMOVAL], {}, ())
    assert verdict.noticed == {}
    assert len(verdict.unnoticed) == 10


def test_a_row_that_no_test_provokes_is_held_against_what_is_on_record() -> None:
    [verdict] = judge([REMOVAL], {}, on_record())
    assert verdict.tests == [UNIT_TEST]
    assert verdict.live == verdict.unnoticed == []


def test_the_record_is_written_as_it_is_read() -> None:
    for one in on_record():
        assert OnRecord.read(one.line()).line() == one.line()


def test_an_attempt_of_a_run_is_put_on_record_where_there_is_none(tmp_path: Path) -> None:
    seen = replace(kept(REMOVAL.expectation, "core1"), elapsed=0.12345)
    write(tmp_path, REMOVAL, seen)
    [one] = keep(ROWS, read(tmp_path), (), "7.2")
    assert (one.qemu, one.situation, one.seen) == ("7.2", "removal", "live")
    assert one.attempt == REMOVAL.expectation
    assert keep(ROWS, read(tmp_path), [one], "7.2") == []


def _interrupt() -> int:
    raise KeyboardInterrupt


def _terminate() -> int:
    os.kill(os.getpid(), signal.SIGTERM)
    return 0


_ENDS = [(_interrupt, 130), (_terminate, 143), (lambda: -signal.SIGKILL, 2), (lambda: 2, 2)]


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The directory for temporary files, of a process that SIGTERM does not end at once."""
    directory = tmp_path / "tmp"
    directory.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(directory))
    before = signal.signal(signal.SIGTERM, lambda *_: None)
    yield directory
    signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize(("end", "status"), _ENDS, ids=["Ctrl-C", "SIGTERM", "killed", "usage"])
def test_a_recording_that_was_cut_off_is_not_taken_for_a_whole_one(
    tmp_path: Path, temporary: Path, monkeypatch: pytest.MonkeyPatch, end: Callable[[], int], status: int
) -> None:
    ends: Iterator[Callable[[], int]] = iter([end, lambda: 1])

    def run(words: Sequence[str], **_: object) -> subprocess.CompletedProcess[str]:
        [directory] = [word.partition("=")[2] for word in words if word.startswith("--record-contracts=")]
        write(Path(directory), REMOVAL, kept(REMOVAL.expectation, "core1"))
        return subprocess.CompletedProcess(words, next(ends)(), "")

    monkeypatch.setattr(subprocess, "run", run)
    recorded = tmp_path / "runs" / "one"
    assert contracts.main([f"--recorded={recorded}", "--live=0"]) == status
    assert list(recorded.parent.iterdir()) == []
    # Run to its end, and then not again.
    for _ in range(2):
        assert contracts.main([f"--recorded={recorded}", "--live=0"]) == 0
    assert [path.name for path in recorded.rglob("*")] == ["1.jsonl"]
    assert list(temporary.iterdir()) == []


def test_a_directory_with_other_things_is_not_written_to(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine").touch()
    assert contracts.main([f"--recorded={tmp_path}"]) == 2
    assert "there is something else than a recorded run" in capsys.readouterr().err


@pytest.mark.parametrize(("end", "status"), _ENDS, ids=["Ctrl-C", "SIGTERM", "killed", "usage"])
def test_faults_leave_nothing_when_they_are_ended(
    temporary: Path, monkeypatch: pytest.MonkeyPatch, end: Callable[[], int], status: int
) -> None:
    def run(words: Sequence[str], **_: object) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(words, end(), "")

    monkeypatch.setattr(subprocess, "run", run)
    assert faults.main([]) == status
    assert list(temporary.iterdir()) == []
