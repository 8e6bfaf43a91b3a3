"""The script that breaks the contracts: what it breaks, who notices, and what it writes down."""

from __future__ import annotations

import io
import json
import tomllib
from dataclasses import replace
from pathlib import Path

import pytest

from ci.contracts import record
from ci.contracts.facts import broken, described, kept
from ci.contracts.overlay import toml
from ci.contracts.replay import UNIT_TEST, OnRecord, judge, keep, on_record, read
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
