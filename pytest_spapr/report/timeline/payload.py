"""What a page's script works on: the records of one run, or of two, as columns. Plain values, for JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Final

from pytest_spapr.hotplug.drc_model import State
from pytest_spapr.report.timeline.bars import Bar, bars
from pytest_spapr.report.timeline.divergence import Divergence
from pytest_spapr.report.timeline.lanes import NUMBERS, loud, pairs, used
from pytest_spapr.report.timeline.run import Run

_MICRO: Final = 1_000_000
_STATES: Final = (None, *State)
#: Records of one run on a page: what a browser still loads in two seconds. A guest that floods its console writes a million.
MOST: Final = 150_000


def payload(runs: Sequence[Run], title: str, divergence: Divergence | None = None, focus: int | None = None) -> dict[str, Any]:
    """Return what a page of these runs shows. Times are whole microseconds, on each run's own clock.

    Of a run with more than 150,000 records those are the last ones; positions count from the first that is shown.

    :param focus: the record of the first run that the page opens at.
    """
    offsets = [max(0, len(run.records) - MOST) for run in runs]
    return {
        "title": title,
        "tracks": [[NUMBERS[track.lane], track.label, track.short] for track in used([run.records for run in runs])],
        "states": [None if state is None else str(state) for state in _STATES],
        "runs": [_run(run, offset) for run, offset in zip(runs, offsets, strict=True)],
        "focus": _shown(focus, offsets[0]),
        "diff": None if divergence is None else _diff(divergence, *offsets),
    }


def _run(run: Run, offset: int) -> dict[str, Any]:
    records = run.records[offset:]
    return {
        "name": run.name,
        "test": run.test,
        "about": run.about,
        "offset": offset,
        "begin": max(run.begin - offset, 0),
        "time": [round(record.time * _MICRO) for record in records],
        "lane": [NUMBERS[record.lane] for record in records],
        "text": [record.text for record in records],
        # As text: most are never looked at, and objects cost a browser ten times as much.
        "data": [_text(record.data) for record in records],
        "pairs": [number - offset for pair in pairs(records) for number in pair],
        "loud": [record.seq - offset for record in records if loud(record)],
        "bars": [_bar(bar, offset) for bar in bars(run.records, run.features)],
    }


def _shown(seq: int | None, offset: int) -> int | None:
    """Return a record's position among those that are shown; None for one that is not."""
    return None if seq is None or seq < offset else seq - offset


def _bar(bar: Bar, offset: int) -> list[Any]:
    stays = [
        [_STATES.index(stay.state), round(stay.begin * _MICRO), round(stay.end * _MICRO), max(stay.seq - offset, 0)]
        for stay in bar.stays
    ]
    return [bar.label, stays]


def _diff(divergence: Divergence, a: int, b: int) -> dict[str, Any]:
    first = divergence.first
    rows = ((_shown(row.a, a), _shown(row.b, b), row.same) for row in divergence.rows)
    return {
        "first": None if first is None else [_shown(first.a, a), _shown(first.b, b), first.where],
        "by_track": [[one.where, _shown(one.a, a), _shown(one.b, b), *one.words] for one in divergence.by_track],
        "rows": [row for row in rows if row[0] is not None or row[1] is not None],
    }


def _text(data: object) -> str | int:
    return 0 if data is None else json.dumps(data, ensure_ascii=False, default=str)
