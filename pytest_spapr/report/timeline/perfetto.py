"""The timeline as a trace in Chrome's JSON format, which ui.perfetto.dev and chrome://tracing open: a process for the machine, a thread
for each lane and each connector."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, Final

from pytest_spapr.report.timeline.bars import bars
from pytest_spapr.report.timeline.lanes import NUMBERS, pairs, used
from pytest_spapr.report.timeline.run import Run

_MICRO: Final = 1_000_000
_PROCESS: Final = 1
# Threads of connectors stand after those of lanes.
_CONNECTORS: Final = 100


def trace(run: Run) -> str:
    """Return the run as JSON. Time 0 is its first record; ``args`` has each record whole."""
    zero = run.records[0].time if run.records else 0.0
    return json.dumps({"traceEvents": list(_events(run, zero)), "displayTimeUnit": "ms", "otherData": run.about})


def _events(run: Run, zero: float) -> Iterator[dict[str, Any]]:
    yield _named("process_name", 0, run.test or "machine")
    for track in used([run.records]):
        yield from _thread(NUMBERS[track.lane] + 1, track.label)
    ends = dict(pairs(run.records))
    for record in run.records:
        event = {
            "name": record.text,
            "cat": str(record.lane),
            "pid": _PROCESS,
            "tid": NUMBERS[record.lane] + 1,
            "ts": round((record.time - zero) * _MICRO),
            "args": {"seq": record.seq, "time": record.time, **({} if record.data is None else {"data": record.data})},
        }
        if (end := ends.get(record.seq)) is not None:
            # An async span: an answer to the command before may come after the next command.
            yield event | {"ph": "b", "id": record.seq}
            yield {**event, "ph": "e", "id": record.seq, "ts": round((run.records[end].time - zero) * _MICRO), "args": {}}
        else:
            yield event | {"ph": "i", "s": "t"}
    for number, bar in enumerate(bars(run.records, run.features), start=_CONNECTORS):
        yield from _thread(number, bar.label)
        for stay in bar.stays:
            yield {
                "name": "unknown" if stay.state is None else str(stay.state),
                "cat": "drc",
                "ph": "X",
                "pid": _PROCESS,
                "tid": number,
                "ts": round((stay.begin - zero) * _MICRO),
                "dur": round((stay.end - stay.begin) * _MICRO),
                "args": {"seq": stay.seq},
            }


def _thread(number: int, name: str) -> Iterator[dict[str, Any]]:
    yield _named("thread_name", number, name)
    yield {"ph": "M", "name": "thread_sort_index", "pid": _PROCESS, "tid": number, "args": {"sort_index": number}}


def _named(what: str, thread: int, name: str) -> dict[str, Any]:
    return {"ph": "M", "name": what, "pid": _PROCESS, "tid": thread, "args": {"name": name}}
