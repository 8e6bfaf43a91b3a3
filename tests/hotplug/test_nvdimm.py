"""NVDIMMs: they come, and QEMU refuses to have any of them go."""

from __future__ import annotations

import os
import uuid
from pathlib import Path
from typing import Any, Final

import pytest

from pytest_spapr import Backend, Contract, Guest, LaunchMachine, PseriesMachine, QmpRefused

from .inventory import nothing_changes

_CONTENT: Final = b"what was written to it"
_SIZE: Final = (256 << 20) + (128 << 10)


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


def written(file: Path) -> Path:
    """Return a file as large as an NVDIMM with its label area, with something at its begin."""
    file.write_bytes(_CONTENT)
    os.truncate(file, _SIZE)
    return file


def holds(file: Path) -> bool:
    """Return whether that is still there."""
    with file.open("rb") as stream:
        return stream.read(len(_CONTENT)) == _CONTENT


def test_an_nvdimm_of_the_command_line_is_there_after_a_reboot(launch_machine: LaunchMachine, tmp_path: Path) -> None:
    """M28: at its place, with what its file had, and it never goes either."""
    file = written(tmp_path / "nvdimm")
    backend = f"memory-backend-file,id=backing,share=on,mem-path={file},size={_SIZE}"
    nvdimm = f"nvdimm,id=nvdimm,memdev=backing,label-size=128K,uuid={uuid.uuid4()}"
    machine = launch_machine(qemu_args=("-object", backend, "-device", nvdimm))
    before = machine.guest.memory.persistent()
    assert len(before) == 1
    with nothing_changes(machine):
        with pytest.raises(QmpRefused, match="nvdimm device hot unplug is not supported yet"):
            machine.qmp.execute("device_del", {"id": "nvdimm"})
        machine.reboot()
    assert machine.guest.memory.persistent() == before
    assert holds(file)


def test_a_machine_that_is_to_have_no_nvdimms_takes_none(launch_machine: LaunchMachine) -> None:
    """M28."""
    machine = launch_machine(image=None, boot=False, qemu_args="-machine nvdimm=off")
    with nothing_changes(machine), pytest.raises(QmpRefused, match="nvdimm device found but 'nvdimm=off' was set"):
        machine.nvdimms.plug()


def test_an_nvdimm_is_kept_in_the_memory_that_it_is_given(machine: PseriesMachine, tmp_path: Path) -> None:
    """M28: a file outlives the machine; the host's side of persistence."""
    file = written(tmp_path / "nvdimm")
    nvdimm = machine.nvdimms.plug(backend=Backend("file", mem_path=str(file), share=True))
    assert nvdimm.configured
    machine.quit()
    assert holds(file)
