"""The timeline of a machine."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest

from pytest_spapr.deadline import Deadline
from pytest_spapr.errors import DeadlineExpired, MachineDied
from pytest_spapr.timeline import Lane, Record, Timeline

LONG = 10


def died() -> MachineDied:
    return MachineDied("QEMU was killed by SIGKILL", -9)


def named(text: str, record: Record) -> Record | None:
    return record if record.text == text else None


@pytest.fixture
def timeline() -> Timeline:
    return Timeline()


def test_records_are_numbered_and_stamped() -> None:
    now = [100.0]
    timeline = Timeline(clock=lambda: now[0])
    timeline.step("first")
    now[0] = 101.5
    second = timeline.record(Lane.EVENT, "STOP", {"event": "STOP"})
    assert timeline.since() == [Record(0, 0.0, Lane.STEP, "first"), Record(1, 1.5, Lane.EVENT, "STOP", {"event": "STOP"})]
    assert str(second) == "    1.5000  event    STOP"


def test_since_a_mark_and_by_lane(timeline: Timeline) -> None:
    timeline.step("before")
    mark = timeline.mark()
    timeline.record(Lane.KERNEL, "a")
    timeline.record(Lane.QMP, "b")
    timeline.record(Lane.KERNEL, "c")
    assert [record.text for record in timeline.since(mark)] == ["a", "b", "c"]
    assert [record.text for record in timeline.since(mark, Lane.KERNEL)] == ["a", "c"]
    assert [record.text for record in timeline.since(mark, Lane.QMP, Lane.KERNEL)] == ["a", "b", "c"]
    assert timeline.since(timeline.mark()) == []


def test_many_writers_lose_nothing(timeline: Timeline) -> None:
    def write() -> None:
        for number in range(500):
            timeline.step(str(number))

    threads = [threading.Thread(target=write) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    records = timeline.since()
    assert [record.seq for record in records] == list(range(2000))
    assert sorted(record.time for record in records) == [record.time for record in records]


class TestWait:
    """For a record."""

    def wait(self, timeline: Timeline, text: str, *, since: int = 0, seconds: float = LONG) -> Record:
        return timeline.wait(
            lambda record: named(text, record), since=since, deadline=Deadline(seconds), what=f"the word {text!r}"
        )

    def test_one_that_came_before_the_wait(self, timeline: Timeline) -> None:
        timeline.step("a")
        timeline.step("b")
        assert self.wait(timeline, "b").seq == 1

    def test_one_that_came_before_the_mark_does_not_count(self, timeline: Timeline) -> None:
        timeline.step("a")
        with pytest.raises(DeadlineExpired, match=r"waited 0\.0 s in vain for the word 'a'"):
            self.wait(timeline, "a", since=timeline.mark(), seconds=0)

    def test_one_that_comes_later(self, timeline: Timeline) -> None:
        waiting = threading.Event()

        def write() -> None:
            waiting.wait(LONG)
            timeline.step("other")
            timeline.step("b")

        writer = threading.Thread(target=write)
        writer.start()
        seen: list[str] = []

        def decide(record: Record) -> Record | None:
            seen.append(record.text)
            waiting.set()
            return named("b", record)

        timeline.step("a")
        assert timeline.wait(decide, since=0, deadline=Deadline(LONG), what="b").seq == 2
        assert seen == ["a", "other", "b"]
        writer.join()

    def test_the_decision_is_returned(self, timeline: Timeline) -> None:
        timeline.step("a")
        # Anything but None is a decision.
        assert timeline.wait(lambda _: "", since=0, deadline=Deadline(LONG), what="a") == ""

    def test_none_comes(self, timeline: Timeline) -> None:
        with pytest.raises(DeadlineExpired, match=r"waited 0\.1 s in vain for the word 'x'"):
            self.wait(timeline, "x", seconds=0.1)
        assert timeline.margins == []

    def test_the_margin_is_kept(self) -> None:
        now = [0.0]
        timeline = Timeline(clock=lambda: now[0])
        timeline.step("a")

        def decide(record: Record) -> Record:
            now[0] += 2
            return record

        timeline.wait(decide, since=0, deadline=Deadline(30, clock=lambda: now[0]), what="a")
        [margin] = timeline.margins
        assert (margin.what, margin.used, margin.budget) == ("a", 2, 30)


class TestEnd:
    """Of the machine: nothing more is to come."""

    def test_a_wait_ends_at_once(self, timeline: Timeline) -> None:
        end = died()
        waiting = threading.Event()

        def finish() -> None:
            waiting.wait(LONG)
            timeline.end(end)

        finisher = threading.Thread(target=finish)
        finisher.start()
        timeline.step("a")
        with pytest.raises(MachineDied) as raised:
            timeline.wait(lambda _: waiting.set(), since=0, deadline=Deadline(LONG), what="nothing")
        assert raised.value is end
        finisher.join()

    def test_what_there_is_is_read_first(self, timeline: Timeline) -> None:
        timeline.step("last words")
        timeline.end(died())
        assert timeline.wait(lambda record: record, since=0, deadline=Deadline(LONG), what="words").text == "last words"
        with pytest.raises(MachineDied):
            timeline.wait(lambda record: record, since=timeline.mark(), deadline=Deadline(LONG), what="more")

    def test_the_first_reason_stays(self, timeline: Timeline) -> None:
        assert timeline.ended is None
        first = died()
        timeline.end(first)
        timeline.end(died())
        assert timeline.ended is first

    def test_last_words_still_count(self, timeline: Timeline) -> None:
        timeline.end(died())
        timeline.record(Lane.CONSOLE, "late")
        assert [record.text for record in timeline.since()] == ["late"]


def test_listeners_hear_what_comes_from_now_on(timeline: Timeline) -> None:
    heard: list[str] = []
    timeline.step("before")
    timeline.listen(lambda record: heard.append(record.text))
    timeline.step("after")
    assert heard == ["after"]


def test_a_timeline_on_disk(timeline: Timeline, tmp_path: Path) -> None:
    timeline.step("gr\u00fc\u00dfe")
    timeline.record(Lane.EVENT, "STOP", {"event": "STOP", "odd": {1}})
    timeline.write(tmp_path / "t.jsonl", tmp_path / "t.txt")
    entries = [json.loads(line) for line in (tmp_path / "t.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [(entry["seq"], entry["lane"], entry["text"]) for entry in entries] == [
        (0, "step", "gr\u00fc\u00dfe"),
        (1, "event", "STOP"),
    ]
    assert "data" not in entries[0]
    # What JSON has no form for is written as Python writes it.
    assert entries[1]["data"] == {"event": "STOP", "odd": "{1}"}
    assert (tmp_path / "t.txt").read_text(encoding="utf-8").splitlines() == [str(record) for record in timeline.since()]
