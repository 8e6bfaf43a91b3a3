"""A flood is kept up to a bound."""

from __future__ import annotations

import os
import re
import resource
from functools import partial
from pathlib import Path

from pytest_spapr.guest.trouble import STAMP, troubles
from pytest_spapr.qemu.channels import LineReader
from pytest_spapr.qemu.flood import MOST, Flood
from pytest_spapr.timeline import Lane, Timeline

_MORE = "(more than can be kept: what follows is left out, but for its last lines)"


def flooded(lines: int, most: int) -> list[str]:
    kept: list[str] = []
    flood = Flood(kept.append, most)
    for number in range(lines):
        flood(f"line {number}")
    flood.end()
    return kept


def resident() -> int:
    """Return how many bytes of memory this process has."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


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


def test_lines_that_are_long_are_fewer() -> None:
    kept: list[str] = []
    flood = Flood(kept.append)
    for _ in range(10_000):
        flood("x" * 8000)
    flood.end()
    assert 31_000_000 < sum(map(len, kept)) < 33_000_000


def test_what_explains_it_is_kept_beyond_it_up_to_a_bound() -> None:
    kept: list[str] = []
    flood = Flood(kept.append, 3, also=re.compile("kernel: "))
    for number in range(100):
        flood(f"line {number}")
        flood(f"kernel: {number}")
    flood.end()
    assert kept[:7] == ["line 0", "kernel: 0", "line 1", "kernel: 1", _MORE, "kernel: 2", "kernel: 3"]
    assert kept[-1] == "kernel: 99"
    assert len(kept) == 3 + 1 + 3 + 1 + 20


def test_a_hundred_megabytes_of_a_guests_console_fill_no_memory() -> None:
    """Through all that stands between QEMU's end of the console and the timeline."""
    timeline = Timeline()
    flood = Flood(partial(timeline.record, Lane.CONSOLE), also=STAMP)
    read, write = os.pipe()
    lines = b"".join(b"flood %030d\n" % number for number in range(27_000))
    before = resident()
    reader = LineReader(read, flood, name="test")
    with os.fdopen(write, "wb", buffering=0) as stream:
        for _ in range(100):
            stream.write(lines)
        stream.write(b"[   99.5] Kernel panic - not syncing: flooded\nover\n")
    assert reader.join(120)
    flood.end()
    assert len(lines) * 100 > 99_000_000
    # Kept whole, all of it takes 700 MB.
    assert resident() - before < 150_000_000
    words = [record.text for record in timeline.since(0, Lane.CONSOLE)]
    assert words[:2] == [f"flood {0:030}", f"flood {1:030}"]
    assert [str(one) for one in troubles(timeline.since())] == ["Kernel panic - not syncing: flooded"]
    assert words[-1] == "over"
    assert f"({100 * 27_000 + 1 - MOST - 20} lines are left out here)" in words


def test_a_small_flood_loses_nothing() -> None:
    assert flooded(5, most=3)[4:] == ["line 3", "line 4"]
