"""A flood is kept up to a bound."""

from __future__ import annotations

from pytest_spapr.qemu.flood import Flood


def flooded(lines: int, most: int) -> list[str]:
    kept: list[str] = []
    flood = Flood(kept.append, most)
    for number in range(lines):
        flood(f"line {number}")
    flood.end()
    return kept


def test_what_is_no_flood_is_whole() -> None:
    assert flooded(3, most=3) == ["line 0", "line 1", "line 2"]


def test_a_flood_is_its_beginning_how_much_more_came_and_its_end() -> None:
    kept = flooded(1000, most=3)
    assert kept[:3] == ["line 0", "line 1", "line 2"]
    assert kept[3:5] == [
        "(more than can be kept: what follows is left out, but for its last lines)",
        "(977 lines are left out here)",
    ]
    assert kept[5:] == [f"line {number}" for number in range(980, 1000)]


def test_a_small_flood_loses_nothing() -> None:
    assert flooded(5, most=3)[4:] == ["line 3", "line 4"]
