"""The timeline's page in a browser: what it shows, finds and hides, what it never runs, many records and small screens."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pytest_spapr.report.timeline.divergence import diverge
from pytest_spapr.report.timeline.page import page as made
from pytest_spapr.report.timeline.run import Run
from pytest_spapr.timeline import Lane, Timeline

from ..unit.timelines import ABOUT, Script, refused_core

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

Show = Callable[..., "Page"]
HOSTILE = "</script><script>window.hacked = 1</script><img src=x onerror='window.hacked = 2'> \x1b[31m \x00 \u202egnp.exe \ud800 &lt;b&gt;"
MANY = 50_000


def written(script: Script, directory: Path, *, focus: int | None = None) -> Path:
    file = directory / "timeline.html"
    file.write_text(made([script.run()], focus=focus), encoding="utf-8")
    return file


@pytest.fixture
def shown(show: Show, tmp_path: Path) -> Page:
    return show(written(refused_core(), tmp_path))


def view(page: Page) -> tuple[float, float]:
    begin, end = page.evaluate("document.documentElement.dataset.view").split()
    return float(begin), float(end)


def rows(page: Page) -> list[str]:
    found: list[str] = page.locator("#rows .row .words").all_text_contents()
    return found


def counted(page: Page, text: str) -> None:
    page.locator("#count", has_text=re.compile(f"^{text}$")).wait_for()


def ready(page: Page) -> None:
    # Not wait_for_function(): it evaluates strings, which the page's policy forbids.
    page.locator("html[data-ready]").wait_for()


def test_it_shows_the_run_and_its_records(shown: Page) -> None:
    assert shown.title() == "test_cores.py::test_it"
    assert "QEMU 11.1.3" in shown.locator("#about").inner_text()
    assert shown.locator("#count").inner_text() == "23 records"
    assert "plug core core1" in rows(shown)
    labels = shown.locator("#legend button > span:not(.dot)").all_text_contents()
    assert labels == ["test steps", "QMP commands", "QMP events", "DRC states", "guest kernel"]
    # A page whose script fails leaves its lanes white.
    assert (
        shown.evaluate(
            "() => { const c = document.querySelector('#tracks canvas'); return new Set(c.getContext('2d')"
            ".getImageData(0, 0, c.width, c.height).data).size }"
        )
        > 20
    )


def test_nothing_that_a_guest_wrote_is_run_or_hidden(show: Show, tmp_path: Path) -> None:
    script = refused_core()
    script.step(f"machine for {HOSTILE}", ABOUT | {"kernel": HOSTILE})
    script.timeline.record(Lane.CONSOLE, HOSTILE, {"said": HOSTILE, HOSTILE: 1})
    page = show(written(script, tmp_path))
    page.locator("#search").fill("gnp.exe")
    page.locator(".row", has_text="gnp.exe").last.click()
    page.locator(".row", has_text="gnp.exe").last.hover()
    for place in ("#detail", "#tip", "#rows"):
        text = page.locator(place).inner_text()
        assert "</script><script>window.hacked = 1</script><img" in text
        assert "\\x1b[31m \\x00 \\u{202e}gnp.exe \\u{d800} &lt;b&gt;" in text
    assert page.evaluate("window.hacked") is None
    assert page.locator("img").count() == 0


def test_even_a_script_that_got_in_is_not_run(browser: Browser, tmp_path: Path) -> None:
    """The page's own policy, should its escaping ever fail."""
    file = written(refused_core(), tmp_path)
    evil = "<script>document.title = 'hacked'</script><p onclick=\"document.title = 'hacked'\" id=bait>bait</p>"
    file.write_text(file.read_text(encoding="utf-8").replace("<header>", f"{evil}<header>"), encoding="utf-8")
    told: list[str] = []
    with browser.new_context() as context:
        page = context.new_page()
        page.on("console", lambda message: told.append(message.text))
        page.goto(file.as_uri())
        page.locator("#bait").click()
        assert page.title() == "test_cores.py::test_it"
    assert len([line for line in told if "Content Security Policy" in line]) == 2


def test_search_finds_in_text_and_data_and_marks_it(shown: Page) -> None:
    shown.keyboard.press("/")
    shown.keyboard.type("MACHINE/peripheral")
    counted(shown, "1 of 23")
    assert rows(shown) == ["DEVICE_UNPLUG_GUEST_ERROR device=core1 path=/machine/peripheral/core1"]
    assert shown.locator("mark").inner_text() == "machine/peripheral"
    shown.locator("#search").fill("power9-spapr-cpu-core")
    shown.locator("#rows mark", has_text="power9-spapr-cpu-core").wait_for()
    assert len(rows(shown)) == 1
    shown.locator("#search").fill("no such thing")
    counted(shown, "0 of 23")
    shown.keyboard.press("Escape")
    assert shown.locator("#count").inner_text() == "23 records"


def test_lanes_can_be_hidden_shown_and_shown_alone(shown: Page) -> None:
    shown.locator("#legend button", has_text="QMP commands").click()
    assert not [text for text in rows(shown) if text.startswith("->")]
    shown.keyboard.press("2")
    assert [text for text in rows(shown) if text.startswith("->")]
    shown.locator("#legend button", has_text="guest kernel").dblclick()
    assert rows(shown) == ["pseries-hotplug-cpu: Failed to offline CPU 8, rc: -16"]


def test_an_address_leads_to_its_record(show: Show, tmp_path: Path) -> None:
    script = refused_core()
    wanted = next(record for record in script.timeline.since() if record.event)
    page = show(written(script, tmp_path), fragment=f"#r{wanted.seq}")
    assert wanted.text in page.locator("#detail").inner_text()
    begin, end = view(page)
    assert begin < wanted.time < end
    assert end - begin < 1.5
    page.locator(".row", has_text="plug core core1").first.click()
    assert re.search(r"#r\d+$", page.url)
    assert not page.url.endswith(f"#r{wanted.seq}")
    page.evaluate("location.hash = '#r999999'")
    assert "plug core core1" in page.locator("#detail").inner_text(), "an address that leads nowhere changes nothing"


def test_of_a_flood_the_end_is_shown_with_its_own_numbers(show: Show, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pytest_spapr.report.timeline.payload.MOST", 6)
    script = refused_core()
    last = len(script.timeline.since()) - 1
    page = show(written(script, tmp_path), fragment=f"#r{last}")
    assert f"the first {last - 5} records are not on this page" in page.locator("#about").inner_text()
    assert f"record {last}" in page.locator("#detail h2").inner_text()
    assert "verdict:" in page.locator("#detail").inner_text()


def test_a_failed_tests_page_opens_at_its_attempt(show: Show, tmp_path: Path) -> None:
    script = refused_core()
    unplug = next(record for record in script.timeline.since() if record.text.startswith("unplug"))
    page = show(written(script, tmp_path, focus=unplug.seq))
    assert "unplug core core1" in page.locator("#detail").inner_text()


def test_keys_zoom_move_and_choose(shown: Page) -> None:
    shown.keyboard.press("0")
    whole = view(shown)
    shown.keyboard.press("+")
    near = view(shown)
    assert near[1] - near[0] < 0.7 * (whole[1] - whole[0])
    shown.keyboard.press("ArrowRight")
    assert view(shown)[0] > near[0]
    shown.keyboard.press("-")
    shown.keyboard.press("-")
    shown.keyboard.press("-")
    assert view(shown)[1] - view(shown)[0] == pytest.approx(whole[1] - whole[0], rel=0.01), "not further than all there is"
    shown.keyboard.press("j")
    first = shown.locator("#detail h2").inner_text()
    shown.keyboard.press("j")
    assert shown.locator("#detail h2").inner_text() != first
    shown.keyboard.press("k")
    assert shown.locator("#detail h2").inner_text() == first
    shown.keyboard.press("?")
    assert shown.locator("#keys").is_visible()


def test_wheel_and_drag_move_the_lanes(shown: Page) -> None:
    box = shown.locator("#tracks canvas").bounding_box()
    assert box is not None
    shown.keyboard.press("0")
    whole = view(shown)
    shown.mouse.move(box["x"] + 700, box["y"] + 60)
    shown.keyboard.down("Control")
    shown.mouse.wheel(0, -200)
    shown.keyboard.up("Control")
    shown.locator(f"html:not([data-view='{whole[0]} {whole[1]}'])").wait_for()
    near = view(shown)
    assert near[1] - near[0] < whole[1] - whole[0]
    shown.mouse.down()
    shown.mouse.move(box["x"] + 500, box["y"] + 60)
    shown.mouse.up()
    assert view(shown)[0] > near[0]
    shown.keyboard.press("0")
    shown.mouse.move(box["x"] + 400, box["y"] + 8)
    shown.mouse.down()
    shown.mouse.move(box["x"] + 600, box["y"] + 8)
    shown.mouse.up()
    chosen = view(shown)
    assert (chosen[1] - chosen[0]) / (whole[1] - whole[0]) == pytest.approx(200 / (box["width"] - 150), rel=0.1)


def test_hovering_shows_the_whole_record_and_the_state_of_a_connector(shown: Page) -> None:
    shown.locator(".row", has_text="-> device_add").hover()
    assert '"driver": "power9-spapr-cpu-core"' in shown.locator("#tip").inner_text()
    assert "answered after 0.0010 s" in shown.locator("#tip").inner_text()
    box = shown.locator("#tracks canvas").bounding_box()
    assert box is not None
    found = []
    for y in range(24, int(box["height"]), 8):
        shown.mouse.move(box["x"] + box["width"] * 0.55, box["y"] + y)
        if shown.locator("#tip").is_visible():
            found.append(shown.locator("#tip").inner_text().splitlines()[0])
    assert "CPU 0x10000008: configured" in found


@pytest.fixture(scope="module")
def long_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    now = 0.0
    timeline = Timeline(clock=lambda: now)
    lanes = [Lane.KERNEL, Lane.QMP, Lane.EVENT, Lane.SERVICE, Lane.SHELL, Lane.STEP]
    for number in range(MANY):
        now = number * 0.001
        data = {"execute": "query-status", "id": f"q{number}", "arguments": {"number": number}} if number % 6 == 1 else None
        timeline.record(
            lanes[number % 6], f"record {number} of a long run, as wide as those of a kernel's log are: {number:#x}", data
        )
    file = tmp_path_factory.mktemp("long") / "timeline.html"
    file.write_text(made([Run(timeline.since())]), encoding="utf-8")
    return file


def test_of_fifty_thousand_records_those_in_sight_are_in_the_page(show: Show, long_run: Path) -> None:
    page = show(long_run)
    ready(page)
    assert page.locator("#count").inner_text() == f"{MANY} records"
    assert page.locator("#rows .row").count() < 100
    page.locator("#list").evaluate("(list) => { list.scrollTop = list.scrollHeight }")
    page.locator("#rows", has_text=f"record {MANY - 1} of").wait_for()
    assert page.locator("#rows .row").count() < 100


def test_fifty_thousand_records_are_shown_found_and_hidden_in_less_than_a_second(show: Show, long_run: Path) -> None:
    """An idle machine takes 0.35 s to show them and 0.03 s for the rest. The best of several tries counts: others use this one too."""
    best: dict[str, float] = {}
    for _ in range(5):
        for name, spent in timed(show(long_run)).items():
            best[name] = min(spent, best.get(name, spent))
        if max(best.values()) < 1000:
            break
    assert {name: spent for name, spent in best.items() if spent >= 1000} == {}


def timed(page: Page) -> dict[str, float]:
    """Return what each took, in milliseconds."""
    ready(page)
    times = {"ready": float(page.evaluate("document.documentElement.dataset.ready"))}
    for needle, count in (("record 4242 of", 1), ("0x1", 4369), ("query-status", 8334)):
        page.locator("#search").fill(needle)
        counted(page, f"{count} of {MANY}")
        times[f"search {needle}"] = float(page.evaluate("document.documentElement.dataset.searched"))
    page.keyboard.press("Escape")
    page.locator("#legend button", has_text="guest kernel").click()
    counted(page, f"41666 of {MANY}")
    times["filter"] = float(page.evaluate("document.documentElement.dataset.filtered"))
    return times


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [1280, 390])
def test_it_fits_a_wide_and_a_narrow_screen(show: Show, tmp_path: Path, width: int, dark: bool) -> None:
    page = show(written(refused_core(), tmp_path), width=width, height=800, dark=dark)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.locator("#search").is_visible()
    assert page.locator("#rows .row").first.is_visible()
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", ground))) < 200) is dark


class TestTwoRuns:
    def page(self, show: Show, tmp_path: Path, **how: int) -> Page:
        a, b = refused_core().run("QEMU 11.1"), refused_core(heard=False, start=7).run("QEMU 5.2")
        file = tmp_path / "two.html"
        file.write_text(made([a, b], divergence=diverge(a, b)), encoding="utf-8")
        return show(file, **how)

    def test_the_first_divergence_is_told_and_marked(self, show: Show, tmp_path: Path) -> None:
        page = self.page(show, tmp_path)
        told = page.locator("#verdict").inner_text()
        assert "First divergence, in events of core1" in told
        assert "DEVICE_UNPLUG_GUEST_ERROR" in told
        assert "nothing more" in told
        assert page.locator("#tracks canvas").count() == 2
        first = page.locator(".row.first")
        assert first.count() == 1
        halves = first.locator(".half").all_text_contents()
        assert "DEVICE_UNPLUG_GUEST_ERROR" in halves[0]
        assert halves[1] == ""

    def test_their_tests_begin_together(self, show: Show, tmp_path: Path) -> None:
        page = self.page(show, tmp_path)
        row = page.locator(".row", has_text="plug core core1").first
        assert row.locator(".time").all_text_contents() == ["0.9980", "0.9980"]

    def test_n_goes_to_the_next_difference_and_links_name_the_run(self, show: Show, tmp_path: Path) -> None:
        page = self.page(show, tmp_path)
        page.keyboard.press("n")
        assert re.search(r"#[ab]\d+$", page.url)
        assert page.locator(".row.other .half.picked").count() == 1

    def test_all_records_of_one_can_be_listed(self, show: Show, tmp_path: Path) -> None:
        page = self.page(show, tmp_path)
        kernel = "pseries-hotplug-cpu: Failed to offline CPU 8, rc: -16"
        assert kernel not in rows(page), "it does not count"
        page.locator("#listed").select_option("all of QEMU 5.2")
        assert kernel in rows(page)
        assert page.locator("#count").inner_text() == "22 records"
        page.locator(".row", has_text=kernel).click()
        assert page.url.endswith("#b19")
        assert "QEMU 5.2, 2.0010 s" in page.locator("#detail h2").inner_text()
        page.locator("#listed").select_option("side by side")
        assert page.locator(".row.first").count() == 1

    def test_it_fits_a_narrow_screen(self, show: Show, tmp_path: Path) -> None:
        page = self.page(show, tmp_path, width=390, height=800)
        assert page.evaluate("document.documentElement.scrollWidth") <= 390

    def test_two_that_did_the_same_say_so(self, show: Show, tmp_path: Path) -> None:
        a, b = refused_core().run("one"), refused_core(start=3).run("other")
        file = tmp_path / "two.html"
        file.write_text(made([a, b], divergence=diverge(a, b)), encoding="utf-8")
        assert "No divergence" in show(file).locator("#verdict").inner_text()
