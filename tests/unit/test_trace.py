"""QEMU's trace lines."""

from __future__ import annotations

import pytest

from pytest_spapr.qemu.trace import parse_drc_event


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("spapr_drc_attach drc: 0x10000008", {"event": "spapr_drc_attach", "drc": 0x10000008}),
        (
            "spapr_drc_set_isolation_state drc: 0x80000004, state: 0x1",
            {"event": "spapr_drc_set_isolation_state", "drc": 0x80000004, "state": 1},
        ),
        # Before 7.1 and with -msg timestamp=on.
        ("4711@1700000000.123456:spapr_drc_reset drc: 0x40000028", {"event": "spapr_drc_reset", "drc": 0x40000028}),
        (
            "spapr_drc_realize_child drc: 0x10000000, child name: cpu 0",
            {"event": "spapr_drc_realize_child", "drc": 0x10000000},
        ),
    ],
)
def test_a_drc_event(line: str, expected: dict[str, object]) -> None:
    assert parse_drc_event(line) == expected


@pytest.mark.parametrize(
    "line",
    [
        "",
        "qemu-system-ppc64: warning: spapr_drc_attach drc: 0x1",
        "spapr_cas_pvr current=0x0",
        "spapr_drc_attach",
        "spapr_drc_attach drc: none",
    ],
)
def test_any_other_line(line: str) -> None:
    assert parse_drc_event(line) is None
