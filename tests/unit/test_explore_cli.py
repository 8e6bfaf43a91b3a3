"""``spapr explore``: bad input, what is written and printed, exit statuses. Nothing is played for real."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pytest_spapr import cli
from pytest_spapr.cells import Cell
from pytest_spapr.cli import explore
from pytest_spapr.coverage.connectors import read
from pytest_spapr.explore.search import Ground, Order, Outcome, play_round

from ..plugin.stubs import build, image
from .explored import FACTS, HEARS_ALL, FakeGround, FakePair, dies_of_phb_beside_core

Explore = Callable[..., int]


@pytest.fixture
def spapr(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Explore:
    """The command, whose rounds are played on a fake."""
    for name in ("QEMU", "IMAGE", "ACCEL", "START", "CONTRACT", "KERNEL", "MODULES"):
        monkeypatch.delenv(f"SPAPR_{name}", raising=False)
    monkeypatch.setenv("SPAPR_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    made = build((11, 1, 3))
    made.features, made.sha256, made.command = HEARS_ALL, "0" * 64, ("qemu-system-ppc64",)
    monkeypatch.setattr(Cell, "obtain", lambda *_, **__: None)
    monkeypatch.setattr(Cell, "build", lambda self, *_: made)
    monkeypatch.setattr(Cell, "image", lambda self, *_: image())
    monkeypatch.setattr(Cell, "accelerator", lambda self: "tcg")
    monkeypatch.setattr(explore, "check_named", lambda _: None)

    def run(*words: str, ground: Ground | None = None) -> int:
        def spread(_: Any, __: Any, count: int, orders: Iterator[Order]) -> Iterator[tuple[Order, Outcome]]:
            assert count in (1, 2)
            for order in orders:
                yield order, play_round(order, ground or FakeGround())

        monkeypatch.setattr(explore, "spread", spread)
        monkeypatch.setattr(explore, "_again", lambda *_: None)
        return cli.main(["explore", *words])

    return run


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["--no-guest", "--image", "debian-12"], "--image has no meaning with --no-guest"),
        (["--onward", "11.1"], "--onward is for one build with --no-guest"),
        (["--no-guest", "--qemu", "7.2", "--qemu", "10.0", "--onward", "11.1"], "--onward is for one build with --no-guest"),
        (["--no-guest", "--output", "/dev/null/x"], "--output=/dev/null/x: nothing can be written there"),
        (["--guided"], "--guided is for --no-guest"),
        (["--no-guest", "--forget", "nonesuch"], "--forget=nonesuch: no known defect is called so"),
        (["--qemu", "7.2", "--qemu", "11.1"], "expected one, or two builds with --no-guest"),
        (["--no-guest", "--qemu", "7.2", "--qemu", "10.0", "--qemu", "11.1"], "3 pairs of a QEMU and an image"),
    ],
)
def test_what_makes_no_sense_is_told_before_anything_is_played(
    spapr: Explore, words: list[str], error: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert spapr(*words) == 2
    assert error in capsys.readouterr().err


def test_builds_of_the_environment_count_as_those_of_the_command_line(
    spapr: Explore, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SPAPR_QEMU", "7.2 10.0")
    assert spapr("--no-guest", "--onward=11.1", "--examples=1") == 2
    assert "--onward is for one build with --no-guest" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["--minutes", "0"], ["--minutes", "soon"], ["--examples", "0"], ["--workers", "no"]])
def test_what_is_no_number_is_told_as_such(spapr: Explore, words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        spapr("--no-guest", *words)
    assert "expected" in capsys.readouterr().err


def test_without_hypothesis_it_says_what_to_install(
    spapr: Explore, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    assert spapr("--no-guest") == 2
    assert "pip install 'pytest-spapr[explore]'" in capsys.readouterr().err


def test_a_sound_build_ends_with_status_0_and_a_record_of_what_was_driven(
    spapr: Explore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert spapr("--no-guest", "--examples", "5", "--seed", "1", "--output", "out") == 0
    said = capsys.readouterr()
    assert "QEMU 11.1.3 (Debian 1:7.2), tcg, no guest, seed 1" in said.err
    assert "5 histories, " in said.out
    assert "0 violations" in said.out
    [record] = read(tmp_path / "out")
    assert record.driven == {"CPU": {"empty": {"attach": 5}}}


def test_what_is_found_is_printed_and_written_and_played_first_the_next_time(
    spapr: Explore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--no-guest", "--examples", "40", "--seed", "1", "--workers", "1"]
    assert spapr(*words, ground=FakeGround(dies_of_phb_beside_core)) == 1
    first = capsys.readouterr().out
    assert "QEMU was killed by SIGSEGV" in first
    assert "Found with seed 1, in round" in first
    [written] = tmp_path.glob("artefacts/explore-*/violation-1/report.txt")
    assert "1. device_add" in written.read_text(encoding="utf-8")
    assert spapr(*words, ground=FakeGround(dies_of_phb_beside_core)) == 1
    assert "A history of an earlier run." in capsys.readouterr().out
    assert spapr(*words, "--fresh") == 0
    assert spapr(*words) == 0, "what no longer breaks is no violation"


def test_a_bad_file_of_an_earlier_run_is_told_and_does_not_end_this_one(
    spapr: Explore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = tmp_path / "cache/explore" / f"no-guest-{'0' * 16}" / "a.json"
    bad.parent.mkdir(parents=True)
    bad.write_text("{", encoding="utf-8")
    assert spapr("--no-guest", "--examples", "5", "--seed", "1") == 0
    said = capsys.readouterr()
    assert f"skipped: {bad} is no history of `spapr explore`" in said.err
    assert "5 histories, " in said.out


def test_of_two_builds_what_is_handed_back_is_about_the_one_that_broke(
    spapr: Explore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = {"7.2": build((7, 2, 22)), "11.1": build((11, 1, 3))}
    for name, one in made.items():
        one.features, one.sha256, one.command = HEARS_ALL, f"{name:f<64}", (f"qemu-{name}",)
    monkeypatch.setattr(Cell, "build", lambda self, *_: made[self.settings.qemu.value])
    words = ["--no-guest", "--qemu=7.2", "--qemu=11.1", "--examples=400", "--seed=1", "--workers=1", "--first"]
    assert spapr(*words, ground=FakePair(dies_of_phb_beside_core)) == 1
    [place] = tmp_path.glob("artefacts/explore-*/violation-1")
    report = " ".join((place / "report.txt").read_text(encoding="utf-8").split())
    assert report.startswith("QEMU 11.1.3 (Debian 1:7.2) with tcg")
    assert "python3 violation_1.py qemu-11.1" in report
    assert 'seen="QEMU 11.1.3"' in report
    for name in ("violation_1.py", "test_violation_1.py", "report.txt"):
        text = (place / name).read_text(encoding="utf-8")
        assert "power10-spapr-cpu-core" in text
        assert FACTS.core_type not in text
    assert "['qemu-11.1']" in (place / "violation_1.py").read_text(encoding="utf-8")
    # What two do differently is not what the first one did by itself.
    [store] = (tmp_path / "cache/explore").iterdir()
    assert store.name == "no-guest-7.2fffffffffffff-11.1ffffffffffff"
    # It is played on both again.
    assert FACTS.core_type in (place / "history.json").read_text(encoding="utf-8")


def test_with_first_it_ends_at_the_first_violation(spapr: Explore, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--no-guest", "--examples", "400", "--seed", "1", "--workers", "1", "--first"]
    ground = FakeGround(dies_of_phb_beside_core)
    assert spapr(*words, ground=ground) == 1
    # Of what was found before, that is: not even one new history is played.
    again = FakeGround(dies_of_phb_beside_core)
    assert spapr(*words, ground=again) == 1
    assert len(ground.worlds) < 400
    assert len(again.worlds) <= 10
    assert capsys.readouterr().out.count("violation 1,") == 2


def test_what_is_found_is_made_small_no_longer_than_it_may(spapr: Explore, monkeypatch: pytest.MonkeyPatch) -> None:
    orders: list[Order] = []

    def play_nothing(order: Order, _: Ground) -> Outcome:
        orders.append(order)
        return Outcome(order)

    monkeypatch.setitem(globals(), "play_round", play_nothing)
    assert spapr("--no-guest", "--examples", "1", "--shrink", "7") == 0
    assert [order.shrink for order in orders] == [7.0]
