"""The table, as text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from ci.benchmark.bars import BARS, PLUGIN_BARS, Verdict, judge
from ci.benchmark.figures import MEASURES, PLUGIN_MEASURES, RATIOS, Figures

_NONE = "-"


def lines(subjects: Mapping[str, Figures], plugin: Figures) -> Iterator[str]:
    """Yield the table: a row for each measure and ratio, a column for each QEMU build; then the bars.

    :param subjects: figures by what the column is called. :param plugin: those of the plugin itself.
    """
    figures = list(subjects.values())
    rows = [["median (first to third quartile)", "", *subjects]]
    rows.extend(
        [measure.title, measure.unit, *(_cell(one, measure.key) for one in figures)]
        for measure in MEASURES
        if any(measure.key in one.samples for one in figures)
    )
    for ratio in RATIOS:
        values = [one.ratio(ratio) for one in figures]
        if any(value is not None for value in values):
            rows.append([ratio.title, "times", *(_number(value) for value in values)])
    yield from _aligned(rows)
    own = [[one.title, one.unit, _cell(plugin, one.key)] for one in PLUGIN_MEASURES if one.key in plugin.samples]
    if own:
        yield ""
        yield from _aligned(own)
    for name, one in subjects.items():
        yield from (f"{name}: {what} was not measured: {why}" for what, why in one.missing.items())
    yield ""
    yield from _bars(subjects, plugin)


def _bars(subjects: Mapping[str, Figures], plugin: Figures) -> Iterator[str]:
    rows = [["bar", "", *subjects]]
    verdicts = [judge(one) for one in subjects.values()]
    for number, bar in enumerate(BARS):
        bound = f"{bar.side} {bar.bound:g} {bar.unit or 'times'}"
        rows.append([bar.title, bound, *(_verdict(row[number]) for row in verdicts)])
    yield from _aligned(rows)
    own = [
        [verdict.bar.title, f"{verdict.bar.side} {verdict.bar.bound:g} {verdict.bar.unit}", _verdict(verdict)]
        for verdict in judge(plugin, PLUGIN_BARS)
    ]
    yield from _aligned(own)


def _verdict(verdict: Verdict) -> str:
    if verdict.holds is None:
        return _NONE
    return f"{_number(verdict.value)} {'holds' if verdict.holds else 'MISSED'}"


def _cell(figures: Figures, key: str) -> str:
    middle = figures.median(key)
    if middle is None:
        return _NONE
    low, high = figures.quartiles(key)
    if low == high:
        return _number(middle)
    return f"{_number(middle)} ({_number(low)} to {_number(high)})"


def _number(value: float | None) -> str:
    """Return three digits, or more before the point."""
    if value is None:
        return _NONE
    digits = 3 if abs(value) < 10 else 1 if abs(value) < 100 else 0
    return f"{value:.{digits}f}"


def _aligned(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        yield "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip()
