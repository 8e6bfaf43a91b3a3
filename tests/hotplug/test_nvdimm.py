"""NVDIMMs: they come, and QEMU refuses to have any of them go."""

from __future__ import annotations

from typing import Any

import pytest

from pytest_spapr import Contract, Guest, PseriesMachine, QmpRefused

from .inventory import nothing_changes


def test_an_nvdimm_comes_and_stays(machine: PseriesMachine, guest: Guest, contract: Contract) -> None:
    """M28: refused as often as one asks, and the guest hears nothing of it."""
    nvdimm = machine.nvdimms.plug(512)
    assert guest.memory.persistent() == {nvdimm.drcs[0]}
    with nothing_changes(machine):
        for _ in range(2):
            assert nvdimm.unplug() == contract.rejection(nvdimm, cause="not supported")
    assert nvdimm.configured


def test_an_nvdimm_is_refused_also_where_nobody_would_be_asked(machine: PseriesMachine, contract: Contract) -> None:
    """M28: what the guest never configured is released at once, of every other kind."""
    with machine.paused():
        nvdimm = machine.nvdimms.plug(wait=False)
        assert nvdimm.unplug() == contract.rejection(nvdimm, cause="not supported")


def test_an_nvdimm_survives_a_reset(machine: PseriesMachine, guest: Guest, contract: Contract) -> None:
    """M28: a rejected command leaves nothing pending that a reset would complete."""
    nvdimm = machine.nvdimms.plug()
    assert nvdimm.unplug() == contract.rejection(nvdimm, cause="not supported")
    machine.reset()
    assert nvdimm.configured
    assert nvdimm.unplug() == contract.rejection(nvdimm, cause="not supported")


def test_dimms_beside_an_nvdimm_go_as_ever(machine: PseriesMachine, contract: Contract) -> None:
    """M28, M38."""
    first = machine.dimms.plug()
    nvdimm = machine.nvdimms.plug()
    last = machine.dimms.plug()
    for dimm in (first, last):
        assert dimm.unplug() == contract.removal(dimm)
    assert nvdimm.configured


@pytest.mark.parametrize(
    ("properties", "words"),
    [
        ({"label-size": 0}, "label-size' .* is required at least 0x20000"),
        ({"label-size": 256 << 10}, r"PAPR requires NVDIMM memory size \(excluding label\) to be a multiple of 256MB"),
        ({"uuid": "00000000-0000-0000-0000-000000000000"}, "NVDIMM device requires the uuid to be set"),
        ({"slot": 99}, "invalid slot number 99"),
    ],
    ids=["label", "unaligned", "no uuid", "slot"],
)
def test_a_bad_nvdimm_is_refused(machine: PseriesMachine, properties: dict[str, Any], words: str) -> None:
    """M28."""
    with nothing_changes(machine), pytest.raises(QmpRefused, match=words):
        machine.nvdimms.plug(**properties)
