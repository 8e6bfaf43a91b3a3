"""Sections of the devices' state, and what the connectors' say."""

from __future__ import annotations

import pytest

from pytest_spapr.hotplug.drc import unplug_requested


def section(number: int, name: str, instance: int, fields: bytes, *, version: int = 1, footer: int | None = None) -> bytes:
    header = b"\x04" + number.to_bytes(4, "big") + named(name) + instance.to_bytes(4, "big") + version.to_bytes(4, "big")
    return header + fields + b"\x7e" + (number if footer is None else footer).to_bytes(4, "big")


def named(name: str) -> bytes:
    return bytes([len(name)]) + name.encode()


STATE = (4).to_bytes(4, "big")
FLAG = b"\x05" + named("spapr_drc/unplug_requested") + (1).to_bytes(4, "big")
MAGIC = b"QEVM\0\0\0\3"


@pytest.mark.parametrize(
    ("sections", "waiting"),
    [
        pytest.param([], set(), id="none that is not at rest"),
        pytest.param([section(7, "spapr_drc", 0x10000001, STATE)], set(), id="another state, no request"),
        pytest.param([section(7, "spapr_drc", 0x10000001, STATE + FLAG + b"\1")], {0x10000001}, id="a core"),
        pytest.param([section(7, "spapr_drc", 0x10000001, STATE + FLAG + b"\0")], set(), id="a flag that is not set"),
        pytest.param(
            [section(10 + n, "spapr_drc", 0x80000004 + n, STATE + FLAG + b"\1") for n in range(2)],
            {0x80000004, 0x80000005},
            id="the LMBs of a DIMM",
        ),
        # Numbers that look like a line's end or like a pattern's sign.
        pytest.param([section(0x0A0A2A2E, "spapr_drc", 0x4000000A, STATE + FLAG + b"\1")], {0x4000000A}, id="odd bytes"),
        pytest.param([section(7, "spapr_drc/physical", 0x40000008, STATE + FLAG + b"\1")], set(), id="another type"),
    ],
)
def test_who_is_waited_for(sections: list[bytes], waiting: set[int]) -> None:
    others = section(1, "timer", 0, bytes(24)), section(99, "spapr", 0, b"\x09spapr_drc" + STATE)
    assert unplug_requested(MAGIC + others[0] + b"".join(sections) + others[1] + b"\0") == waiting


def test_what_only_looks_like_a_section_is_none() -> None:
    """A guest may write anything into a device's buffers; the footer's number gives away that it is no section."""
    lookalike = section(7, "spapr_drc", 0x10000001, STATE + FLAG + b"\1", footer=8)
    assert unplug_requested(MAGIC + section(3, "spapr-vty", 0, lookalike)) == set()
