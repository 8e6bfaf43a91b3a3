from __future__ import annotations

import pytest

from pytest_spapr.images.elf import EM_PPC64, Elf, NotElf
from tests.unit.debian_archive import elf


def test_a_program_says_which_libraries_and_which_loader_it_needs() -> None:
    assert Elf(elf(needed=("libc.so.6", "librtas.so.2"), interpreter="/lib64/ld64.so.2")).needed() == [
        "libc.so.6",
        "librtas.so.2",
        "/lib64/ld64.so.2",
    ]


def test_a_static_program_needs_nothing() -> None:
    assert Elf(elf(kind=2)).needed() == []


def test_a_section_is_found_by_name() -> None:
    file = Elf(elf(sections={".text": b"code", ".modinfo": b"depends=\0"}))
    assert file.section(".modinfo") == b"depends=\0"
    assert file.section(".data") is None
    assert file.machine == EM_PPC64


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "no ELF"),
        (b"#!/bin/sh\n", "no ELF"),
        (b"\x7fELF\x01\x01" + b"\0" * 58, "64-bit little-endian"),
        (b"\x7fELF\x02\x02" + b"\0" * 58, "64-bit little-endian"),
        (elf()[:40], "cut off"),
    ],
)
def test_other_files_are_refused(data: bytes, says: str) -> None:
    with pytest.raises(NotElf, match=says):
        Elf(data)


def test_a_file_that_is_cut_off_in_its_tables_is_refused() -> None:
    with pytest.raises(NotElf, match="cut off"):
        Elf(elf(needed=("libc.so.6",))[:100]).needed()
    with pytest.raises(NotElf, match="section table"):
        Elf(elf(sections={".a": b"x"})[:-200]).section(".a")
