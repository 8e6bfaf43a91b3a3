"""QEMU's trace lines, as its log backend writes them to stderr."""

from __future__ import annotations

import re
from typing import Any, Final

# "spapr_drc_attach drc: 0x10000001"; with `-msg timestamp=on` and before QEMU 7 behind "pid@seconds.microseconds:".
_LINE: Final = re.compile(
    r"^(?:\d+@\d+\.\d+:)?(?P<event>spapr_drc_\w+) drc: (?P<drc>0x[0-9a-f]+)(?:, state: (?P<state>0x[0-9a-f]+))?"
)


def parse_drc_event(line: str) -> dict[str, Any] | None:
    """Return ``{"event": ..., "drc": ..., "state": ...}`` for a ``spapr_drc_*`` trace line, None for any other line.

    ``state`` is there only for the events that carry one.
    """
    match = _LINE.match(line)
    if match is None:
        return None
    parsed: dict[str, Any] = {"event": match["event"], "drc": int(match["drc"], 16)}
    if match["state"] is not None:
        parsed["state"] = int(match["state"], 16)
    return parsed
