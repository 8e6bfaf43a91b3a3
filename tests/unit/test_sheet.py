"""The behaviour sheet as a table, as JSON and as a page."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from pytest_spapr.battery.observation import Result
from pytest_spapr.battery.scenarios import chosen
from pytest_spapr.hotplug.outcome import Outcome
from pytest_spapr.report.sheet import Column, Sheet, as_json, markdown
from pytest_spapr.report.sheet_page import page

from .test_battery import seen

OLD, NEW = (
    Column(name=name, qemu=f"QEMU {name}", accelerator="tcg", image="debian-12", kernel="6.1.0-50") for name in ("7.2", "11.1")
)


@pytest.fixture
def sheet() -> Sheet:
    scenarios = chosen(["core-removal", "pci-errd-absent"])
    wrong = replace(
        seen(reply="a | <b>"), differences=("outcome: expected removed, observed refused",), situation="removal", promised=True
    )
    died = Result(scenario="core-removal", trouble="MachineDied: SIGSEGV", defect="tcg-core-removal", crashed=True)
    again = Result(scenario="pci-errd-absent", observations=(seen(), seen(step="repeat")))
    short = Result(scenario="pci-errd-absent", observations=(seen(),), trouble="GuestError: no")
    results = {"core-removal": [died, Result(scenario="core-removal", observations=(wrong,))], "pci-errd-absent": [short, again]}
    return Sheet(made_by="pytest-spapr 1", columns=(OLD, NEW), scenarios=scenarios, results=results)


def test_markdown_has_a_table_for_each_kind_and_marks_what_differs(sheet: Sheet) -> None:
    lines = markdown(sheet).splitlines()
    assert "| 7.2 | QEMU 7.2 | tcg | debian-12 | 6.1.0-50 |" in lines
    assert "## CPU cores" in lines
    cores = "| the guest gives it up | unplug | QEMU died: tcg-core-removal | removed: “a \\| <b>”: DEVICE_DELETED **≠ 1** |"
    assert cores in lines
    assert "| rtas_errd is gone for a while | unplug | removed: DEVICE_DELETED | removed: DEVICE_DELETED |" in lines
    assert "|  | repeat | GuestError: no | removed: DEVICE_DELETED |" in lines
    assert lines[-1] == "1. 11.1, core-removal, unplug: outcome: expected removed, observed refused"


def test_a_death_of_a_known_defect_is_no_difference_and_trouble_at_the_end_is_told(sheet: Sheet) -> None:
    crashed = replace(seen(outcome=Outcome.CRASHED), differences=("outcome: expected removed, observed crashed",))
    died = Result(
        scenario="core-removal", observations=(crashed,), trouble="MachineDied", defect="tcg-core-removal", crashed=True
    )
    late = Result(scenario="core-removal", observations=(seen(),), trouble="GuestError: no")
    one = replace(sheet, results={**sheet.results, "core-removal": [died, late]})
    lines = markdown(one).splitlines()
    assert "| the guest gives it up | unplug | QEMU died: tcg-core-removal | removed: DEVICE_DELETED |" in lines
    assert "|  | end | QEMU died: tcg-core-removal | GuestError: no |" in lines
    assert one.differences == 0
    alone = replace(
        sheet, results={**sheet.results, "core-removal": [died, Result(scenario="core-removal", observations=(seen(),))]}
    )
    assert "| end |" not in markdown(alone), "the step has told it"


def test_what_a_known_defect_prevents_was_not_played(sheet: Sheet) -> None:
    prevented = Result(scenario="core-removal", trouble="it is not played: it hangs", defect="tcg-smp-migration")
    one = replace(
        sheet, results={**sheet.results, "core-removal": [prevented, Result(scenario="core-removal", observations=(seen(),))]}
    )
    assert (
        "| the guest gives it up | unplug | not played: tcg-smp-migration | removed: DEVICE_DELETED |"
        in markdown(one).splitlines()
    )


def test_it_is_the_same_text_for_the_same_behaviour(sheet: Sheet) -> None:
    """No time, no path, no id: what is under version control changes only if QEMU does."""
    slower = {name: [replace(one, seconds=9.9) if one else None for one in results] for name, results in sheet.results.items()}
    assert markdown(replace(sheet, results=slower)) == markdown(sheet)


def test_it_counts_what_differs_and_what_did_not_end(sheet: Sheet) -> None:
    assert (sheet.differences, sheet.unplayed) == (1, 1)
    unplayed = replace(sheet, results={**sheet.results, "core-removal": [None, None]})
    assert unplayed.unplayed == 3
    assert "| the guest gives it up | end | not played | not played |" in markdown(unplayed)


def test_json_has_everything(sheet: Sheet) -> None:
    data = json.loads(as_json(sheet))
    assert data["format"] == 1
    assert [column["name"] for column in data["columns"]] == ["7.2", "11.1"]
    core, pci = data["scenarios"]
    assert core["results"]["7.2"]["defect"] == "tcg-core-removal"
    assert core["results"]["11.1"]["observations"][0]["reply"] == "a | <b>"
    assert pci["kind"] == "pci"


def test_the_page_is_whole_and_escapes_what_qemu_says(sheet: Sheet) -> None:
    text = page(sheet)
    open_tags: list[str] = []

    class Balanced(HTMLParser):
        def handle_starttag(self, tag: str, attrs: object) -> None:
            if tag not in ("br", "meta"):
                open_tags.append(tag)

        def handle_endtag(self, tag: str) -> None:
            assert open_tags.pop() == tag

    Balanced().feed(text)
    assert open_tags == []
    assert "a | &lt;b&gt;" in text
    assert "<b>" not in text
    assert re.search(r'<td class="removed other">.*<li>outcome: expected removed, observed refused</li>', text)
    assert "src=" not in text
    assert "href=" not in text
