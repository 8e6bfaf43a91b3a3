"""The page of a run in a browser."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_spapr.report.index import Index
from pytest_spapr.report.summary import facts
from pytest_spapr.report.timeline.page import page as made

from ..unit.timelines import refused_core

if TYPE_CHECKING:
    from playwright.sync_api import Page


def test_it_leads_to_the_tests_pages_and_finds_tests(show: Callable[..., Page], tmp_path: Path) -> None:
    place = tmp_path / "a test #1 with 100% odd letters"
    place.mkdir()
    (place / "timeline.html").write_text(made([refused_core().run()]), encoding="utf-8")
    one: Any = facts([]) | {
        "machines": 1,
        "outcomes": {"refused": 1},
        "pages": [str(place / "timeline.html")],
        "qemu": "QEMU <11>",
    }
    index = Index()
    index.add_phase("test_a.py::test_bad[<img src=x onerror=alert(1)>\x1b]", "failed", 1.5)
    index.add_facts("test_a.py::test_bad[<img src=x onerror=alert(1)>\x1b]", one)
    for number in range(3):
        index.add_phase(f"test_a.py::test_good[{number}]", "passed", 0.1)
    page = show(index.write(tmp_path, "QEMU <11>"))
    assert page.locator("#count").inner_text() == "4 tests"
    assert "test_bad[<img src=x onerror=alert(1)>\\x1b]" in page.locator("tbody").inner_text()
    assert page.locator("img").count() == 0
    page.locator("button", has_text="passed").click()
    assert page.locator("#count").inner_text() == "1 of 4 tests"
    page.locator("button", has_text="passed").click()
    page.locator("#search").fill("good[2]")
    assert page.locator("#count").inner_text() == "1 of 4 tests"
    page.locator("#search").fill("")
    page.set_viewport_size({"width": 390, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.locator("a", has_text="timeline").click()
    page.locator("html[data-ready]").wait_for()
    assert page.title() == "test_cores.py::test_it"
