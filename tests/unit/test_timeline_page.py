"""A timeline as a page: reading, connectors' bars, divergence of two runs, and what is written; a browser's part is in tests/browser."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ElementTree
from importlib import resources
from pathlib import Path

import pytest
from hypothesis import given, strategies

from pytest_spapr import cli
from pytest_spapr.errors import ConfigError
from pytest_spapr.hotplug.drc_model import State
from pytest_spapr.report.timeline.bars import Bar, bars, last_states
from pytest_spapr.report.timeline.divergence import diverge
from pytest_spapr.report.timeline.lanes import TRACKS, pairs
from pytest_spapr.report.timeline.page import embedded, filled, page
from pytest_spapr.report.timeline.payload import payload
from pytest_spapr.report.timeline.perfetto import trace
from pytest_spapr.report.timeline.run import Run, read
from pytest_spapr.report.timeline.svg import picture
from pytest_spapr.timeline import Lane

from .timelines import CARD, CORE, HEARS_ALL, Script, refused_core

HOSTILE = "</script><img src=x onerror=alert(1)><!-- \x1b[2J \x00 \u202e @@SCRIPT@@ & \ud800"


class TestRead:
    def test_what_was_written_is_read(self, tmp_path: Path) -> None:
        script = refused_core()
        file = script.write(tmp_path)
        for path in (file, tmp_path):
            run = read(path)
            assert [record.text for record in run.records] == [record.text for record in script.timeline.since()]
            assert run.test == "test_cores.py::test_it"
            assert run.about["kernel"] == "Linux 6.1.0-50-powerpc64le"
            assert run.features == HEARS_ALL
            assert run.records[run.begin].text == "the test begins"

    def test_a_last_line_that_was_cut_off_is_left_out(self, tmp_path: Path) -> None:
        file = refused_core().write(tmp_path)
        whole = len(read(file).records)
        file.write_text(file.read_text().rstrip("\n")[:-5])
        assert len(read(file).records) == whole - 1

    @pytest.mark.parametrize(
        ("text", "words"),
        [
            ("", "is empty: nothing was observed"),
            ("{}\n", "line 1 is no record of a timeline: it has no 'seq'"),
            ("[]\n", "line 1 is no record of a timeline"),
            ("hello\n", "line 1 is no record of a timeline"),
            ("[" * 100000 + "\n", "line 1 is no record of a timeline"),
            ('{"seq": 1, "time": 0, "lane": "step", "text": ""}\n', "line 1 .* expected record 0"),
            ('{"seq": 0, "time": 0, "lane": "tea", "text": ""}\n', "line 1 .* 'tea' is not a valid Lane"),
        ],
    )
    def test_what_is_no_timeline_is_an_error(self, tmp_path: Path, text: str, words: str) -> None:
        (tmp_path / "timeline.jsonl").write_text(text)
        with pytest.raises(ConfigError, match=words):
            read(tmp_path)

    def test_what_is_not_there_or_is_not_text_is_an_error(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="No such file or directory"):
            read(tmp_path)
        refused_core().write(tmp_path / "one")
        with pytest.raises(ConfigError, match=r"has timelines of tests \(1\): name one, as .*/one\."):
            read(tmp_path)
        (tmp_path / "timeline.jsonl").write_bytes(b"\xff\xfe")
        with pytest.raises(ConfigError, match="JSON lines in UTF-8"):
            read(tmp_path)


def names(bar: Bar) -> list[str]:
    return [str(stay.state) for stay in bar.stays]


class TestBars:
    def test_a_refused_core_was_waited_for_and_is_the_guests_again(self) -> None:
        run = refused_core().run()
        (bar,) = bars(run.records, HEARS_ALL)
        assert bar.label == "CPU 0x10000008"
        assert names(bar) == ["unusable", "available", "unisolated", "configured", "configured, pending", "configured"]
        assert all(stay.end == after.begin for stay, after in zip(bar.stays, bar.stays[1:], strict=False))
        assert bar.stays[-1].end == run.end

    def test_a_qemu_that_hears_no_refusal_still_waits(self) -> None:
        run = refused_core(heard=False).run()
        (bar,) = bars(run.records, frozenset())
        assert names(bar)[-1] == "configured, pending"
        assert last_states(run.records, frozenset())[CORE] is State.CONFIGURED_PENDING

    def test_what_is_pending_goes_by_a_reset_that_only_an_event_tells_of(self) -> None:
        script = refused_core(heard=False)
        script.event("RESET", guest=False, reason="host-qmp-system-reset")
        (bar,) = bars(script.run().records, frozenset())
        assert names(bar)[-1] == "configured, pending"
        assert bar.stays[-1].end == 3
        assert last_states(script.run().records, frozenset())[CORE] is State.EMPTY

    def test_what_travels_with_the_machine_is_not_plugged_anew(self) -> None:
        script = refused_core()
        before = names(*bars(script.run().records, HEARS_ALL))
        script.step("migrate")
        script.drc(CORE, "attach")
        script.qmp("cont")
        assert names(*bars(script.run().records, HEARS_ALL)) == before

    def test_many_lmbs_with_one_fate_are_one_bar(self) -> None:
        script = Script()
        script.qmp("device_add")
        for number in range(12):
            script.drc(0x80000010 + number, "attach", "allocation 1", "isolation 1", "configured")
        script.drc(0x80000010, "unplug_request")
        labels = [bar.label for bar in bars(script.run().records, HEARS_ALL)]
        assert labels == ["LMB 0x80000010", "11x LMB 0x80000011"]

    def test_a_phb_takes_its_slots_with_it(self) -> None:
        script = Script()
        script.qmp("device_add")
        script.drc(CARD, "attach", "isolation 1", "unrealize")
        script.step("later")
        (bar,) = bars(script.run().records, HEARS_ALL)
        assert names(bar) == ["power-on", "unisolated"]
        assert bar.stays[-1].end < script.run().end


def test_answers_belong_to_their_commands() -> None:
    script = Script()
    script.timeline.record(Lane.QMP, "-> a", {"execute": "a", "id": 1})
    script.timeline.record(Lane.QMP, "-> b", {"execute": "b", "id": 2})
    script.timeline.record(Lane.SHELL, "$ ls")
    script.timeline.record(Lane.QMP, "<- {}", {"return": {}, "id": 2})
    script.timeline.record(Lane.SHELL, "= 0 in 0.1 s")
    script.timeline.record(Lane.QMP, "<- error", {"error": {}, "id": 1})
    script.timeline.record(Lane.SHELL, "= 0 of nobody")
    assert list(pairs(script.timeline.since())) == [(1, 3), (2, 4), (0, 5)]


class TestDivergence:
    def test_two_runs_that_did_the_same_do_not_part(self) -> None:
        a, b = refused_core().run(), refused_core(start=17.3, queries=5).run()
        found = diverge(a, b)
        assert found.first is None
        assert found.by_track == ()
        assert found.rows
        assert all(row.same for row in found.rows)

    def test_they_part_at_the_first_thing_that_counts(self) -> None:
        a, b = refused_core().run(), refused_core(heard=False, start=5).run()
        first = diverge(a, b).first
        assert first is not None
        assert first.where == "events of core1"
        assert a.records[first.a or 0].event == "DEVICE_UNPLUG_GUEST_ERROR"
        assert first.b is None
        tracks = [one.where for one in diverge(a, b).by_track]
        assert tracks == ["events of core1", "test steps"]

    def test_the_order_of_two_lanes_is_not_compared(self) -> None:
        one, other = Script(), Script()
        one.drc(CORE, "attach", "isolation 1")
        one.drc(CARD, "attach")
        one.qmp("stop")
        other.qmp("stop")
        other.drc(CARD, "attach")
        other.drc(CORE, "attach", "isolation 1")
        assert diverge(one.run(), other.run()).first is None

    def test_what_is_the_same_stands_side_by_side_and_what_is_not_beside_its_like(self) -> None:
        one, other = Script(), Script()
        one.step("the test begins")
        one.step("unplug core core1")
        one.qmp("device_del")
        one.event("DEVICE_DELETED", device="core1")
        other.step("the test begins")
        other.qmp("device_del", error="no")
        other.step("unplug core core1")
        other.event("ACPI_DEVICE_OST", device="core1")
        other.step("the end")
        rows = [(row.a, row.b, row.same) for row in diverge(one.run(), other.run()).rows]
        assert rows == [(0, 0, True), (1, 3, True), (2, 1, True), (3, 2, False), (4, 4, False), (None, 5, False)]

    def test_a_slower_run_parts_where_a_quicker_one_does(self) -> None:
        """By the clock the quick run's verdict comes before the slow run's event."""
        quick, slow = refused_core(heard=False), Script()
        for record in refused_core().timeline.since():
            slow.at(record.time * 10).timeline.record(record.lane, record.text, record.data)
        first = diverge(quick.run(), slow.run()).first
        assert first is not None
        assert first.where == "events of core1"

    def test_what_moves_connectors_counts_for_each_of_them(self) -> None:
        """A reset moves what is pending and what is not, by one record."""
        one, other = Script(), Script()
        for script in (one, other):
            script.qmp("device_add")
            script.drc(CORE, "attach", "allocation 1", "isolation 1", "configured")
            script.drc(CARD, "attach", "isolation 1", "configured", "unplug_request")
        one.drc(CORE, "unplug_request")
        for script in (one, other):
            script.event("RESET", guest=False)
        found = diverge(one.run(), other.run())
        assert found.first is not None
        assert (found.first.where, found.first.words) == ("DRC 0x10000008", ("configured, pending", "stays configured"))
        assert [track.where for track in found.by_track] == ["DRC 0x10000008"]

    def test_another_answer_is_a_divergence_and_its_numbers_are_not(self) -> None:
        scripts = [Script() for _ in range(3)]
        for script, error in zip(scripts, ("pid 17 is busy", "pid 4242 is busy", "there is no such device"), strict=True):
            script.qmp("device_del", {"id": "core1"}, error=error)
        one, same, other = (script.run() for script in scripts)
        assert diverge(one, same).first is None
        first = diverge(one, other).first
        assert first is not None
        assert (first.where, first.a, first.b) == ("QMP commands", 1, 1)

    def test_another_argument_is_one_and_another_place_of_a_file_is_none(self) -> None:
        scripts = [Script() for _ in range(3)]
        for script, path in zip(scripts, ("/tmp/a1/sock", "/tmp/b2/sock", "/var/sock"), strict=True):
            script.qmp("chardev-add", {"path": path})
        one, same, other = (script.run() for script in scripts)
        assert diverge(one, same).first is None
        assert diverge(one, other).first is not None
        sizes = [Script(), Script()]
        for script, size in zip(sizes, (256, 512), strict=True):
            script.qmp("object-add", {"size": size})
        assert diverge(sizes[0].run(), sizes[1].run()).first is not None

    def test_the_kernels_words_are_told_and_do_not_count(self) -> None:
        one, other = refused_core(), refused_core()
        other.timeline.record(Lane.KERNEL, "something else")
        found = diverge(one.run(), other.run())
        assert found.first is None
        assert [(track.where, track.counts) for track in found.by_track] == [("guest kernel", False)]

    def test_drmgrs_end_counts(self) -> None:
        one, other = Script(), Script()
        for script, status in ((one, 0), (other, 1)):
            script.timeline.record(Lane.SERVICE, "drmgr: begin -c pci -r -s 0x40000008")
            script.timeline.record(Lane.SERVICE, f"drmgr: end {status} -c pci -r -s 0x40000008")
        first = diverge(one.run(), other.run()).first
        assert first is not None
        assert first.where == "drmgr"


class TestPage:
    def test_what_a_guest_writes_cannot_be_taken_for_html(self) -> None:
        script = Script()
        script.step(f"machine for {HOSTILE}")
        script.timeline.record(Lane.CONSOLE, HOSTILE, {"said": HOSTILE})
        text = page([script.run()])
        before, after = text.split('<script id="data" type="application/json">')
        held = after.split("</script>")[0]
        assert not set(held) & set("<>&")
        assert held.isascii()
        assert json.loads(held)["runs"][0]["text"][1] == HOSTILE
        assert "<img" not in text
        assert text.count("</script>") == 2
        assert "&lt;/script&gt;&lt;img" in before, "the title"

    def test_it_loads_nothing(self) -> None:
        text = page([refused_core().run()])
        assert not re.search(r"""(?:src|href)\s*=\s*["']|url\(|@import|fetch\(|XMLHttp|import\(""", text)
        assert "default-src 'none'; script-src 'sha256-" in text

    def test_a_slot_that_data_names_is_not_filled(self) -> None:
        assert filled("@@A@@ @@B@@", A="@@B@@", B="b") == "@@B@@ b"

    @given(strategies.text(alphabet=strategies.characters(exclude_categories=[])))
    def test_any_text_is_embedded_whole_and_harmless(self, text: str) -> None:
        held = embedded({text: text})
        assert held.isascii()
        assert not set(held) & set("<>&")
        assert json.loads(held) == {text: text}

    def test_its_scripts_make_no_html_of_text(self) -> None:
        for file in (resources.files("pytest_spapr.report.timeline") / "web").iterdir():
            assert not re.search(
                r"innerHTML|outerHTML|insertAdjacent|document\.write|\beval\(|new Function|srcdoc", file.read_text()
            ), file

    def test_each_lane_has_a_track(self) -> None:
        assert {track.lane for track in TRACKS} == set(Lane)

    def test_nothing_at_all_is_a_page_too(self) -> None:
        assert payload([Run(())], "nothing")["runs"][0]["time"] == []
        assert page([Run(())])

    def test_of_a_flood_the_end_is_shown(self, monkeypatch: pytest.MonkeyPatch) -> None:
        run = refused_core().run()
        monkeypatch.setattr("pytest_spapr.report.timeline.payload.MOST", 6)
        (shown,) = payload([run], "flood", focus=len(run.records) - 2)["runs"]
        assert shown["offset"] == len(run.records) - 6
        assert shown["text"] == [record.text for record in run.records[-6:]]
        assert shown["begin"] == 0
        assert shown["loud"] == [
            record.seq - shown["offset"] for record in run.records[-6:] if record.event or "verdict" in record.text
        ]
        assert payload([run], "flood", focus=len(run.records) - 2)["focus"] == 4
        assert payload([run], "flood", focus=0)["focus"] is None

    def test_its_files_are_of_the_package(self) -> None:
        files = {file.name for file in (resources.files("pytest_spapr.report.timeline") / "web").iterdir()}
        assert {"page.html", "page.css", "model.js", "tracks.js", "overview.js", "list.js", "main.js"} <= files
        assert {"index.html", "index.css", "index.js"} <= files


def test_a_trace_for_perfetto_has_lanes_and_states() -> None:
    run = refused_core(start=-2).run()
    events = json.loads(trace(run))["traceEvents"]
    threads = {event["tid"]: event["args"]["name"] for event in events if event["name"] == "thread_name"}
    assert {"test steps", "QMP commands", "QMP events", "DRC states", "guest kernel", "CPU 0x10000008"} == set(threads.values())
    assert all(event["ts"] >= 0 for event in events if "ts" in event)
    states = [event["name"] for event in events if event["ph"] == "X"]
    assert states == ["unusable", "available", "unisolated", "configured", "configured, pending", "configured"]
    begun = [event["id"] for event in events if event["ph"] == "b"]
    assert begun == [event["id"] for event in events if event["ph"] == "e"]
    assert len(begun) == 4
    instants = [event for event in events if event["ph"] == "i"]
    assert any(event["args"].get("data", {}).get("event") == "DEVICE_UNPLUG_GUEST_ERROR" for event in instants)


class TestPicture:
    def texts(self, svg: str) -> list[str]:
        return [element.text or "" for element in ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")]

    def test_it_has_lanes_states_and_what_is_loud(self) -> None:
        found = self.texts(picture(refused_core().run()))
        assert {"test steps", "DRC states", "CPU 0x10000008", "configured", "plug core core1"} <= set(found)

    def test_a_window_shows_its_part(self) -> None:
        found = self.texts(picture(refused_core().run(), 1.9, 2.5))
        assert "unplug core core1" in found
        assert "plug core core1" not in found

    def test_hostile_text_is_text(self) -> None:
        script = Script()
        script.step(f"unplug {HOSTILE}")
        script.at(1).step("end")
        assert any("</script><img" in text and "\\x1b" in text for text in self.texts(picture(script.run())))


class TestCommand:
    def test_a_page_stands_beside_its_timeline(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        refused_core().write(tmp_path)
        assert cli.main(["timeline", str(tmp_path)]) == 0
        assert capsys.readouterr().out == f"{tmp_path / 'timeline.html'}\n"
        assert "<!doctype html>" in (tmp_path / "timeline.html").read_text()

    @pytest.mark.parametrize(("kind", "name"), [("perfetto", "timeline.perfetto.json"), ("svg", "timeline.svg")])
    def test_so_do_other_formats(self, tmp_path: Path, kind: str, name: str) -> None:
        file = refused_core().write(tmp_path)
        assert cli.main(["timeline", str(file), f"--format={kind}"]) == 0
        assert (tmp_path / name).stat().st_size > 1000

    def test_two_that_part_are_status_1_and_say_where(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        refused_core().write(tmp_path / "new")
        refused_core(heard=False).write(tmp_path / "old")
        output = tmp_path / "both.html"
        assert cli.main(["timeline", str(tmp_path / "old"), str(tmp_path / "new"), f"--output={output}"]) == 1
        assert capsys.readouterr().out.splitlines() == [
            str(output),
            "first divergence, in events of core1:",
            "  old: nothing more",
            "  new: DEVICE_UNPLUG_GUEST_ERROR device=core1 path=/machine/peripheral/core1 (2.0040 s, record 21)",
        ]
        assert output.exists()

    def test_two_that_do_the_same_are_status_0(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        refused_core().write(tmp_path / "a")
        refused_core(start=3).write(tmp_path / "b")
        assert cli.main(["timeline", str(tmp_path / "a"), str(tmp_path / "b"), f"--output={tmp_path / 'x.html'}"]) == 0
        assert "no divergence in what counts" in capsys.readouterr().out

    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            (["{}", "{}", "--format=svg"], "--format=svg is for one timeline: of two there is only the page."),
            (["{}", "--output={}/no/such.html"], "such.html cannot be written: No such file or directory. Name another file"),
            (["{}/nowhere"], "No such file or directory. Expected a timeline.jsonl"),
        ],
    )
    def test_bad_input(self, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], words: str) -> None:
        refused_core().write(tmp_path)
        assert cli.main(["timeline", *(word.format(tmp_path) for word in arguments)]) == 2
        assert words in capsys.readouterr().err

    @pytest.mark.parametrize("window", ["4:1", "x", "1", "1:1"])
    def test_a_bad_window(self, tmp_path: Path, capsys: pytest.CaptureFixture[str], window: str) -> None:
        with pytest.raises(SystemExit):
            cli.main(["timeline", str(tmp_path), "--format=svg", f"--window={window}"])
        assert "is no window: expected two times in seconds" in capsys.readouterr().err
