"""The timeline: nothing is lost, every wait ends."""

from __future__ import annotations

import json
import threading
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pytest_spapr.deadline import Deadline
from pytest_spapr.errors import DeadlineExpired, MachineDied
from pytest_spapr.timeline import Branch, Lane, Margin, Record, Timeline

SECONDS = 20
DEATH = MachineDied("QEMU was killed by SIGKILL", -9)


class Clock:
    """One second later at each look."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        self.now += 1
        return self.now


def named(text: str) -> Callable[[Record], Record | None]:
    return lambda record: record if record.text == text else None


def never(record: Record) -> None:
    return None


class TestRecords:
    def test_they_are_numbered_and_stamped(self) -> None:
        timeline = Timeline(clock=Clock())
        first = timeline.record(Lane.QMP, "-> stop", {"execute": "stop"})
        second = timeline.step("look")
        assert first == Record(0, 1.0, Lane.QMP, "-> stop", {"execute": "stop"})
        assert second == Record(1, 2.0, Lane.STEP, "look")
        assert timeline.since() == [first, second]

    def test_a_cursor_divides_before_from_after(self) -> None:
        timeline = Timeline()
        timeline.step("before")
        cursor = timeline.mark()
        assert timeline.since(cursor) == []
        timeline.step("after")
        assert [record.text for record in timeline.since(cursor)] == ["after"]

    def test_lanes_are_picked(self) -> None:
        timeline = Timeline()
        for lane in Lane:
            timeline.record(lane, str(lane))
        assert [record.lane for record in timeline.since(0, Lane.EVENT, Lane.DRC)] == [Lane.EVENT, Lane.DRC]
        assert len(timeline.since(0)) == len(Lane)

    def test_what_was_read_does_not_grow(self) -> None:
        timeline = Timeline()
        read = timeline.since()
        timeline.step("later")
        assert read == []

    def test_a_listener_hears_what_comes_in_order(self) -> None:
        timeline = Timeline()
        timeline.step("before")
        heard: list[str] = []
        timeline.listen(lambda record: heard.append(record.text))
        timeline.listen(lambda record: heard.append(record.text.upper()))
        timeline.step("one")
        timeline.step("two")
        assert heard == ["one", "ONE", "two", "TWO"]

    def test_one_that_goes_on_from_another_begins_with_its_history(self) -> None:
        now = 10.0
        before = Timeline(clock=lambda: now)
        for lane, seconds in ((Lane.KERNEL, 11.0), (Lane.QMP, 12.0), (Lane.SERVICE, 13.0)):
            now = seconds
            before.record(lane, str(lane))
        now = 14.0
        after = Timeline(clock=lambda: now)
        after.step("first")
        after.adopt(before.history(Lane.KERNEL, Lane.SERVICE))
        after.step("last")
        assert [(record.seq, record.time, record.text) for record in after.since()] == [
            (0, 0.0, "first"),
            (1, -3.0, "kernel"),
            (2, -1.0, "service"),
            (3, 0.0, "last"),
        ]
        assert [record.time for record in before.since()] == [1.0, 2.0, 3.0]

    def test_only_an_event_has_an_events_name(self) -> None:
        timeline = Timeline()
        data = {"event": "STOP"}
        assert timeline.record(Lane.EVENT, "STOP", data).event == "STOP"
        assert timeline.record(Lane.QMP, "STOP", data).event is None
        assert timeline.record(Lane.EVENT, "STOP").event is None

    def test_many_writers_lose_nothing(self) -> None:
        timeline = Timeline()
        writers, each = 16, 500
        heard: list[int] = []
        timeline.listen(lambda record: heard.append(record.seq))
        together = threading.Barrier(writers)

        def write(writer: int) -> None:
            together.wait(SECONDS)
            for number in range(each):
                timeline.record(Lane.KERNEL, f"{writer} {number}")

        with ThreadPoolExecutor(writers) as pool:
            list(pool.map(write, range(writers)))
        records = timeline.since()
        assert [record.seq for record in records] == list(range(writers * each)) == heard
        assert sorted(records, key=lambda record: record.time) == records
        for writer in range(writers):
            mine = [record.text for record in records if record.text.startswith(f"{writer} ")]
            assert mine == [f"{writer} {number}" for number in range(each)]

    @pytest.mark.parametrize("branches", [False, True])
    def test_who_looks_sees_what_a_stream_holds(self, branches: bool) -> None:
        """What is written before a mark is before the mark, whenever its reader comes to it."""
        timeline = Timeline()
        stream = ["one", "two"]

        def catch_up() -> None:
            while stream:
                timeline.record(Lane.STDERR, stream.pop(0))

        (Branch(timeline) if branches else timeline).follow(catch_up)
        assert [record.text for record in timeline.since(0)] == ["one", "two"]
        stream.append("three")
        assert timeline.mark() == 3


class TestWait:
    def test_what_is_there_already_counts_from_the_cursor_on(self) -> None:
        timeline = Timeline()
        timeline.step("x")
        cursor = timeline.mark()
        wanted = timeline.step("x")
        assert timeline.wait(named("x"), since=cursor, deadline=Deadline(0), what="x") is wanted

    def test_each_record_is_looked_at_once(self) -> None:
        timeline = Timeline()
        for text in ("a", "b", "c"):
            timeline.step(text)
        seen: list[str] = []

        def decide(record: Record) -> bool | None:
            seen.append(record.text)
            return True if record.text == "c" else None

        assert timeline.wait(decide, since=1, deadline=Deadline(SECONDS), what="c")
        assert seen == ["b", "c"]

    @pytest.mark.parametrize("decision", [0, "", False, []])
    def test_a_false_decision_is_one_too(self, decision: object) -> None:
        timeline = Timeline()
        timeline.step("x")
        assert timeline.wait(lambda _: decision, since=0, deadline=Deadline(0), what="x") == decision

    def test_a_record_wakes_every_waiter(self) -> None:
        timeline = Timeline()
        looking = threading.Barrier(5)

        def wait(_: int) -> Record:
            first = True

            def decide(record: Record) -> Record | None:
                nonlocal first
                if first:
                    first = False
                    looking.wait(SECONDS)
                return named("now")(record)

            return timeline.wait(decide, since=0, deadline=Deadline(SECONDS), what="now")

        timeline.step("before")
        with ThreadPoolExecutor(4) as pool:
            waits = pool.map(wait, range(4))
            looking.wait(SECONDS)
            now = timeline.step("now")
            assert list(waits) == [now] * 4

    def test_the_deadline_names_the_wait(self) -> None:
        with pytest.raises(DeadlineExpired, match=r"^waited 0\.0 s in vain for DEVICE_DELETED$"):
            Timeline().wait(never, since=0, deadline=Deadline(0.01), what="DEVICE_DELETED")

    def test_a_flood_of_other_records_does_not_outlast_the_deadline(self) -> None:
        """A guest that writes without end is no reason to wait without end."""
        timeline = Timeline()
        timeline.step("first")
        looks = 0

        def decide(record: Record) -> None:
            nonlocal looks
            looks += 1
            assert looks < 1_000_000
            timeline.record(Lane.CONSOLE, "and another")

        with pytest.raises(DeadlineExpired):
            timeline.wait(decide, since=0, deadline=Deadline(0.05), what="x")

    def test_an_error_in_the_decision_comes_through(self) -> None:
        timeline = Timeline()
        timeline.step("x")
        table: dict[str, str] = {}
        with pytest.raises(KeyError, match="gone"):
            timeline.wait(lambda _: table["gone"], since=0, deadline=Deadline(0), what="x")
        timeline.step("the lock is free")

    def test_a_success_leaves_its_margin(self) -> None:
        timeline = Timeline(clock=Clock())
        timeline.step("x")
        timeline.wait(named("x"), since=0, deadline=Deadline(7), what="the x")
        with pytest.raises(DeadlineExpired):
            timeline.wait(never, since=0, deadline=Deadline(0), what="the y")
        assert timeline.margins == [Margin("the x", 1.0, 7)]


class TestEnd:
    def test_it_ends_a_wait_at_once(self) -> None:
        timeline = Timeline()
        looking = threading.Event()

        def decide(record: Record) -> bool | None:
            looking.set()
            return None

        timeline.step("x")
        with ThreadPoolExecutor(1) as pool:
            wait = pool.submit(lambda: timeline.wait(decide, since=0, deadline=Deadline(600), what="x"))
            assert looking.wait(SECONDS)
            timeline.end(DEATH)
            assert wait.exception(SECONDS) is DEATH

    def test_what_came_before_it_still_counts(self) -> None:
        timeline = Timeline()
        wanted = timeline.step("x")
        timeline.end(DEATH)
        assert timeline.wait(named("x"), since=0, deadline=Deadline(0), what="x") is wanted

    def test_last_words_are_recorded_and_found(self) -> None:
        timeline = Timeline()
        timeline.end(DEATH)
        wanted = timeline.record(Lane.STDERR, "Segmentation fault")
        assert timeline.wait(named("Segmentation fault"), since=0, deadline=Deadline(0), what="x") is wanted
        with pytest.raises(MachineDied):
            timeline.wait(never, since=0, deadline=Deadline(0), what="x")

    def test_the_first_reason_stays(self) -> None:
        timeline = Timeline()
        assert timeline.ended is None
        timeline.end(DEATH)
        timeline.end(MachineDied("another", 1))
        assert timeline.ended is DEATH

    def test_a_reason_that_many_waits_raise_does_not_gather_their_tracebacks(self) -> None:
        """Else a test's report would show lines of waits that ended before, in other threads."""
        timeline = Timeline()
        timeline.end(DEATH)
        depths = []
        for _ in range(3):
            with pytest.raises(MachineDied) as died:
                timeline.wait(never, since=0, deadline=Deadline(0), what="x")
            depths.append(len(traceback.extract_tb(died.value.__traceback__)))
        assert len(set(depths)) == 1


class TestFiles:
    def test_both_have_every_record(self, tmp_path: Path) -> None:
        timeline = Timeline(clock=Clock())
        timeline.record(Lane.EVENT, "STOP", {"event": "STOP", "path": tmp_path})
        timeline.step("wärmer")
        jsonl, text = tmp_path / "timeline.jsonl", tmp_path / "timeline.txt"
        timeline.write(jsonl, text)
        assert [json.loads(line) for line in jsonl.read_text().splitlines()] == [
            {"seq": 0, "time": 1.0, "lane": "event", "text": "STOP", "data": {"event": "STOP", "path": str(tmp_path)}},
            {"seq": 1, "time": 2.0, "lane": "step", "text": "wärmer"},
        ]
        assert text.read_text() == "    1.0000  event    STOP\n    2.0000  step     wärmer\n"

    def test_any_text_can_be_written(self, tmp_path: Path) -> None:
        """JSON from a monitor may hold half a surrogate pair, which no file can."""
        timeline = Timeline()
        timeline.step(json.loads('"\\ud800"'))
        timeline.write(tmp_path / "jsonl", tmp_path / "text")
        assert "\\ud800" in (tmp_path / "text").read_text()
        assert "\\ud800" in (tmp_path / "jsonl").read_text()

    def test_an_empty_timeline_is_two_empty_files(self, tmp_path: Path) -> None:
        Timeline().write(tmp_path / "jsonl", tmp_path / "text")
        assert (tmp_path / "jsonl").read_bytes() == (tmp_path / "text").read_bytes() == b""

    def test_one_may_be_written_while_others_write(self, tmp_path: Path) -> None:
        timeline = Timeline()
        stop = threading.Event()

        def chatter() -> None:
            while not stop.is_set():
                timeline.step("word")

        with ThreadPoolExecutor(2) as pool:
            for _ in range(2):
                pool.submit(chatter)
            timeline.step("marked")
            timeline.write(tmp_path / "jsonl", tmp_path / "text")
            stop.set()
        lines = (tmp_path / "jsonl").read_text().splitlines()
        assert [json.loads(line)["seq"] for line in lines] == list(range(len(lines)))
        assert len((tmp_path / "text").read_text().splitlines()) == len(lines)


class TestBranch:
    """The timeline of a QEMU that is to take over."""

    def test_what_it_records_is_on_both(self) -> None:
        trunk = Timeline()
        trunk.step("before")
        branch = Branch(trunk)
        branch.step("here")
        assert [record.text for record in trunk.since()] == ["before", "here"]
        assert [record.text for record in branch.since()] == ["here"]

    @pytest.mark.parametrize("late", [False, True], ids=["ends first", "merges first"])
    def test_its_end_is_the_machines_when_it_has_taken_over(self, late: bool) -> None:
        trunk = Timeline()
        branch = Branch(trunk)
        if not late:
            branch.end(DEATH)
            assert trunk.ended is None
        branch.merge()
        branch.end(DEATH)
        assert branch.ended is trunk.ended is DEATH
