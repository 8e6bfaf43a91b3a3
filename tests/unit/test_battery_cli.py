"""``spapr sheet`` and ``spapr compare``: bad input, what is played again, and exit statuses. Nothing is played for real."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pytest_spapr import cli
from pytest_spapr.battery.observation import Result
from pytest_spapr.cells import Cell
from pytest_spapr.cli import compare, sheet
from pytest_spapr.cli.crew import Task
from pytest_spapr.hotplug.outcome import Outcome

from ..plugin.stubs import build, image
from .test_battery import seen

REMOVED = Result(scenario="x", observations=(seen(),))
REFUSED = Result(scenario="x", observations=(seen(outcome=Outcome.REFUSED, events=("DEVICE_UNPLUG_GUEST_ERROR",)),))
KNOWN = Result(scenario="x", trouble="MachineDied: SIGSEGV", crashed=True, defect="tcg-core-removal")
BROKEN = Result(scenario="x", trouble="GuestError: no")

Script = Callable[[Task, int], Result]


@pytest.fixture(autouse=True)
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("QEMU", "IMAGE", "ACCEL", "START", "CONTRACT", "KERNEL", "MODULES"):
        monkeypatch.delenv(f"SPAPR_{name}", raising=False)
    monkeypatch.setenv("SPAPR_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def played(monkeypatch: pytest.MonkeyPatch) -> Callable[[Script], Counter[Task]]:
    """Have a script say what becomes of each task the first time, the second time...; count how often each was played."""
    counts: Counter[Task] = Counter()

    def use(script: Script) -> Counter[Task]:
        def play(_: Any, tasks: Iterable[Task], *__: Any) -> Iterator[tuple[Task, Result]]:
            for task in tasks:
                counts[task] += 1
                yield task, script(task, counts[task])

        for module in (sheet, compare):
            monkeypatch.setattr(module, "play", play)
        monkeypatch.setattr(Cell, "obtain", lambda *_, **__: None)
        monkeypatch.setattr(Cell, "build", lambda self, *_: build((7, 2, 22)))
        monkeypatch.setattr(Cell, "image", lambda self, *_: image())
        monkeypatch.setattr(Cell, "accelerator", lambda self: "tcg")
        return counts

    return use


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["compare", "7.2", "11.1", "--scenario", "cores"], "no scenario is called 'cores'; there are core-removal"),
        (["compare", "no-such-qemu", "11.1", "--offline"], "no-such-qemu"),
        (["compare", "./none", "11.1"], "there is no such file or directory"),
        (["sheet", "--qemu", "7.2", "--qemu", "7.2"], "is given twice"),
        (["sheet", "--output", "/dev/null/x"], "--output=/dev/null/x: nothing can be written there"),
        (["sheet", "--contract", "none.toml"], "none.toml"),
    ],
)
def test_bad_input_is_told_in_one_line(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(arguments) == 2
    told = capsys.readouterr().err
    assert words in told
    assert "Traceback" not in told


@pytest.mark.parametrize("runs", ["0", "-1", "two"])
def test_a_number_of_runs_is_one(runs: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["compare", "7.2", "11.1", "--runs", runs])
    assert ended.value.code == 2
    assert "is no number of runs: expected 1 or more" in capsys.readouterr().err


class TestCompare:
    ARGUMENTS = ("compare", "7.2", "11.1", "--scenario", "core-removal", "--scenario", "core-reset")

    def test_a_build_is_the_same_as_itself(
        self, played: Callable[[Script], Counter[Task]], capsys: pytest.CaptureFixture[str]
    ) -> None:
        counts = played(lambda task, _: REMOVED)
        assert cli.main(["compare", "11.1", "11.1", "--scenario", "core"]) == 0
        assert capsys.readouterr().out == ""
        assert set(counts.values()) == {1}

    def test_what_differs_is_played_again_and_told(
        self, played: Callable[[Script], Counter[Task]], capsys: pytest.CaptureFixture[str]
    ) -> None:
        counts = played(lambda task, _: REFUSED if task == Task(1, "core-reset") else REMOVED)
        assert cli.main([*self.ARGUMENTS, "--runs", "4"]) == 1
        assert capsys.readouterr().out.splitlines() == [
            "core-reset (a reset while it is pending (machine paused))",
            "  unplug: outcome: removed -> refused",
            "  unplug: events: DEVICE_DELETED -> DEVICE_UNPLUG_GUEST_ERROR "
            "(DEVICE_DELETED is no longer sent, DEVICE_UNPLUG_GUEST_ERROR is new)",
        ]
        assert counts == {
            Task(0, "core-removal"): 1,
            Task(1, "core-removal"): 1,
            Task(0, "core-reset"): 4,
            Task(1, "core-reset"): 4,
        }

    def test_what_differs_only_once_is_no_change(self, played: Callable[[Script], Counter[Task]]) -> None:
        counts = played(lambda task, number: REFUSED if task == Task(1, "core-reset") and number == 1 else REMOVED)
        assert cli.main([*self.ARGUMENTS]) == 0
        assert counts[Task(1, "core-reset")] == 2

    def test_a_known_defect_is_no_change_and_played_again(
        self, played: Callable[[Script], Counter[Task]], capsys: pytest.CaptureFixture[str]
    ) -> None:
        played(lambda task, number: KNOWN if task == Task(0, "core-reset") and number < 3 else REMOVED)
        assert cli.main([*self.ARGUMENTS]) == 0
        played(lambda task, _: KNOWN if task == Task(0, "core-reset") else REMOVED)
        assert cli.main([*self.ARGUMENTS]) == 2
        told = capsys.readouterr()
        assert told.out == ""
        assert "core-reset (a reset while it is pending (machine paused)): could not be told" in told.err
        assert "old: known defect tcg-core-removal: MachineDied: SIGSEGV" in told.err


class TestSheet:
    ARGUMENTS = ("sheet", "--qemu", "7.2", "--image", "debian-12", "--scenario", "core-removal", "--output", "out")

    def test_three_files_are_written(
        self, played: Callable[[Script], Counter[Task]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        played(lambda task, _: REMOVED)
        assert cli.main([*self.ARGUMENTS]) == 0
        assert "0 steps differ from their contracts" in capsys.readouterr().out
        assert {path.name for path in (tmp_path / "out").iterdir()} == {"behaviour.md", "behaviour.json", "behaviour.html"}
        data = json.loads((tmp_path / "out" / "behaviour.json").read_text(encoding="utf-8"))
        assert [column["name"] for column in data["columns"]] == ["7.2.22"]

    @pytest.mark.parametrize(
        ("images", "names"),
        [
            (["debian-12"], ["7.2", "11.1"]),
            (["debian-12", "debian-13"], ["7.2-debian-12", "7.2-debian-13", "11.1-debian-12", "11.1-debian-13"]),
        ],
    )
    def test_columns_are_called_by_what_they_differ_in(
        self,
        played: Callable[[Script], Counter[Task]],
        monkeypatch: pytest.MonkeyPatch,
        tmp_path: Path,
        images: list[str],
        names: list[str],
    ) -> None:
        played(lambda task, _: REMOVED)
        monkeypatch.setattr(Cell, "image", lambda self, *_: image(self.settings.image.value))
        options = [f"--image={name}" for name in images]
        assert cli.main(["sheet", "--qemu=7.2", "--qemu=11.1", *options, "--scenario=core-removal"]) == 0
        data = json.loads((tmp_path / "behaviour.json").read_text(encoding="utf-8"))
        assert [column["name"] for column in data["columns"]] == names

    def test_what_a_known_defect_ends_is_tried_again(self, played: Callable[[Script], Counter[Task]]) -> None:
        counts = played(lambda task, number: KNOWN if number < 3 else REMOVED)
        assert cli.main([*self.ARGUMENTS]) == 0
        assert set(counts.values()) == {3}
        played(lambda task, _: KNOWN)
        assert cli.main([*self.ARGUMENTS]) == 0, "a known defect is in the table, and no news"

    def test_what_nobody_knows_is_not_tried_until_it_hides(
        self, played: Callable[[Script], Counter[Task]], capsys: pytest.CaptureFixture[str]
    ) -> None:
        counts = played(lambda task, number: BROKEN if number < 2 else REMOVED)
        assert cli.main([*self.ARGUMENTS]) == 2
        assert set(counts.values()) == {1}
        assert "core-removal on 7.2.22 did not come to its end: GuestError: no" in capsys.readouterr().err

    def test_what_differs_from_its_contract_is_told(self, played: Callable[[Script], Counter[Task]]) -> None:
        wrong = Result(
            scenario="x", observations=(replace(seen(), differences=("outcome: expected refused, observed removed",)),)
        )
        played(lambda task, _: wrong)
        assert cli.main([*self.ARGUMENTS]) == 1
