"""The timeline as a picture for documentation: a window of time, the lanes that have something in it, and the connectors' states."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from html import escape
from typing import Final

from pytest_spapr.hotplug.drc_model import NOT_PENDING, State
from pytest_spapr.printable import printable
from pytest_spapr.report.timeline.bars import Bar, bars
from pytest_spapr.report.timeline.lanes import TRACKS, Track, loud, pairs
from pytest_spapr.report.timeline.run import Run
from pytest_spapr.timeline import Lane, Record

_WIDTH, _GUTTER, _RIGHT, _AXIS = 1000, 150, 12, 26
_LANE, _NAMED_LANE, _BAR = 22, 34, 20
# Of one letter of 11 px, on average: there is no font to measure with.
_LETTER: Final = 5.9
_LONGEST: Final = 60
_FILLS: Final = {
    State.UNUSABLE: "new",
    State.POWER_ON: "new",
    State.AVAILABLE: "available",
    State.UNISOLATED: "unisolated",
    State.CONFIGURED: "configured",
}
_STYLE: Final = """
text { font: 11px system-ui, sans-serif; fill: #1d2329; } .axis { font: 10.5px ui-monospace, monospace; fill: #646d78; }
.state { font-weight: 600; fill: #fff; } .ground { fill: #fff; } .odd { fill: #f5f6f7; } .grid { stroke: #dfe2e6; }
.new { fill: #8f9bab; } .available { fill: #5ea6d3; } .unisolated { fill: #3f82c2; } .configured { fill: #3f9864; }
.unknown { fill: #aab2bd; } .pending { fill: #e3a52c; }
@media (prefers-color-scheme: dark) {
text { fill: #e3e7ec; } .axis { fill: #98a2af; } .ground { fill: #181d23; } .odd { fill: #1f252c; } .grid { stroke: #2c333c; }
}
"""


@dataclass(frozen=True, slots=True)
class _Scale:
    begin: float
    end: float

    def x(self, time: float) -> float:
        inner = _WIDTH - _GUTTER - _RIGHT
        return round(_GUTTER + (min(max(time, self.begin), self.end) - self.begin) / (self.end - self.begin) * inner, 1)

    def has(self, time: float) -> bool:
        return self.begin <= time <= self.end


def picture(run: Run, begin: float | None = None, end: float | None = None) -> str:
    """Return the picture as SVG, 1000 units wide, light or dark as its reader's system is.

    :param begin: :param end: in seconds on the run's clock; by default from the test's begin to the last record.
    """
    start = run.records[run.begin].time if begin is None else begin
    stop = run.end if end is None else end
    scale = _Scale(start, stop if stop > start else start + 1e-3)
    shown = [record for record in run.records if scale.has(record.time)]
    body: list[str] = []
    y = _AXIS
    for track in TRACKS:
        records = [record for record in shown if record.lane is track.lane]
        if not records:
            continue
        height = _NAMED_LANE if any(map(loud, records)) else _LANE
        body.extend(_lane(run, track, records, scale, y, height))
        y += height
        if track.lane is Lane.DRC:
            for bar in bars(run.records, run.features):
                body.extend(_bar(bar, scale, y))
                y += _BAR
    height = y + 6
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" role="img" aria-label="{escape(printable(run.test))}">'
    ground = f'<rect class="ground" width="{_WIDTH}" height="{height}"/>'
    return "\n".join([head, f"<style>{_STYLE}{_colours()}</style>", ground, *_axis(scale, height), *body, "</svg>\n"])


def _colours() -> str:
    light = "".join(f".l{number} {{ fill: {track.light}; }} " for number, track in enumerate(TRACKS))
    dark = "".join(f".l{number} {{ fill: {track.dark}; }} " for number, track in enumerate(TRACKS))
    return f"{light}\n@media (prefers-color-scheme: dark) {{ {dark} }}\n"


def _axis(scale: _Scale, height: float) -> Iterator[str]:
    span = scale.end - scale.begin
    power = 10 ** math.floor(math.log10(span / 8))
    step = next(power * factor for factor in (1, 2, 5, 10) if span / (power * factor) <= 8)
    digits = max(0, -math.floor(math.log10(step) + 1e-9))
    for number in range(math.ceil(scale.begin / step), math.floor(scale.end / step) + 1):
        x = scale.x(number * step)
        yield f'<line class="grid" x1="{x}" x2="{x}" y1="18" y2="{height}"/>'
        if x < _WIDTH - 40:
            yield f'<text class="axis" x="{x + 3}" y="14">{number * step:.{digits}f} s</text>'


def _lane(run: Run, track: Track, records: list[Record], scale: _Scale, y: float, height: float) -> Iterator[str]:
    kind = f"l{TRACKS.index(track)}"
    yield f'<text x="12" y="{y + 15}">{escape(track.label)}</text><rect class="{kind}" x="4" y="{y + 7}" width="3" height="9"/>'
    for command, reply in pairs(records):
        left, right = scale.x(run.records[command].time), scale.x(run.records[reply].time)
        if right - left >= 1:
            yield f'<rect class="{kind}" opacity=".3" x="{left}" y="{y + 6}" width="{round(right - left, 1)}" height="11"/>'
    columns = dict.fromkeys(scale.x(record.time) for record in records)
    yield from (f'<rect class="{kind}" x="{x}" y="{y + 6}" width="1.6" height="11"/>' for x in columns)
    if height == _NAMED_LANE:
        yield from _words(records, scale, y, kind)


def _words(records: list[Record], scale: _Scale, y: float, kind: str) -> Iterator[str]:
    """Write beside their marks as many words as there is room for, the loud ones first."""
    taken: list[tuple[float, float]] = []
    for record in sorted(records, key=lambda one: (not loud(one), one.seq)):
        text = record.text if len(record.text) <= _LONGEST else f"{record.text[: _LONGEST - 1]}…"
        width = len(text) * _LETTER + 8
        # At the right end, words stand before their mark.
        left = min(scale.x(record.time), _WIDTH - width)
        if all(left + width <= a or left >= b for a, b in taken):
            taken.append((left, left + width))
            yield f'<text class="{kind}" x="{round(left, 1)}" y="{y + 29}">{escape(printable(text))}</text>'


def _bar(bar: Bar, scale: _Scale, y: float) -> Iterator[str]:
    yield f'<text class="axis" x="18" y="{y + 14}">{escape(bar.label)}</text>'
    for stay in bar.stays:
        if stay.end < scale.begin or stay.begin > scale.end:
            continue
        left, right = scale.x(stay.begin), scale.x(stay.end)
        width = round(max(right - left, 1.5), 1)
        base = None if stay.state is None else NOT_PENDING.get(stay.state, stay.state)
        name = "unknown" if stay.state is None else str(stay.state)
        fill = "unknown" if base is None else _FILLS[base]
        yield f'<rect class="{fill}" x="{left}" y="{y + 2}" width="{width}" height="15"><title>{name}</title></rect>'
        if base is not stay.state:
            yield f'<rect class="pending" x="{left}" y="{y + 13}" width="{width}" height="4"/>'
        if width > len(name) * _LETTER + 6:
            yield f'<text class="state" x="{left + 4}" y="{y + 12}">{name}</text>'
