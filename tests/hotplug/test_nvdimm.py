"""NVDIMMs: they come, and QEMU refuses to have any of them go."""

from __future__ import annotations

import os
import secrets
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from pytest_spapr import Backend, Contract, Guest, LaunchMachine, PseriesMachine, QmpRefused
from pytest_spapr.qemu.qtest import Qtest

from .inventory import nothing_changes

_SIZE: Final = 256 << 20
_LABEL: Final = 128 << 10
_WORD: Final = 64
#: At the first bytes of an NVDIMM, and at the last.
_PLACES: Final = (0, _SIZE - _WORD)


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


class Medium:
    """A file of the host, as an NVDIMM has it, and the machine's memory where it is to stand.

    A machine's end of it is read by QEMU's monitor, and written by QEMU's qtest server as a CPU would: the guest need have no driver.

    :param directory: where the files are made. :ivar file: as large as an NVDIMM with its label area, with words at its first bytes
        and at the last before the label area.
    """

    def __init__(self, directory: Path) -> None:
        self.file = directory / "nvdimm"
        self._copy = directory / "copy"
        self.file.write_bytes(b"")
        os.truncate(self.file, _SIZE + _LABEL)
        self.words = [secrets.token_bytes(_WORD) for _ in _PLACES]

    @property
    def words(self) -> list[bytes]:
        """What stands at the two places in the file."""
        with self.file.open("rb") as stream:
            return [os.pread(stream.fileno(), _WORD, place) for place in _PLACES]

    @words.setter
    def words(self, words: list[bytes]) -> None:
        with self.file.open("r+b") as stream:
            for place, word in zip(_PLACES, words, strict=True):
                os.pwrite(stream.fileno(), word, place)

    def read(self, machine: PseriesMachine, device: str) -> list[bytes]:
        """Return what stands at the two places in the machine's memory."""
        found = []
        for place in _PLACES:
            saved = {"val": _address(machine, device) + place, "size": _WORD, "filename": str(self._copy)}
            machine.qmp.execute("pmemsave", saved)
            found.append(self._copy.read_bytes())
        return found

    def write(self, machine: PseriesMachine, device: str, qtest: Qtest) -> list[bytes]:
        """Write other words to the two places in the machine's memory, and return them."""
        words = [secrets.token_bytes(_WORD) for _ in _PLACES]
        for place, word in zip(_PLACES, words, strict=True):
            qtest.command(f"write {_address(machine, device) + place:#x} {_WORD} 0x{word.hex()}")
        return words


def _address(machine: PseriesMachine, device: str) -> int:
    """Return where QEMU says that it put a memory device."""
    found = [one["data"]["addr"] for one in machine.qmp.execute("query-memory-devices") if one["data"].get("id") == device]
    assert len(found) == 1
    return int(found[0])


@pytest.fixture
def medium(tmp_path: Path) -> Medium:
    return Medium(tmp_path)


@pytest.fixture
def qtest_path() -> Iterator[Path]:
    """Where QEMU's qtest server is to listen; a test's own directory can have too long a name for a socket."""
    with tempfile.TemporaryDirectory(prefix="spapr-") as directory:
        yield Path(directory, "qtest")


def test_an_nvdimm_of_the_command_line_is_there_after_a_reboot(
    launch_machine: LaunchMachine, medium: Medium, qtest_path: Path
) -> None:
    """M28: at its place, with what its file had and what the machine wrote, and it never goes either."""
    backend = f"memory-backend-file,id=backing,share=on,mem-path={medium.file},size={_SIZE + _LABEL}"
    nvdimm = f"nvdimm,id=nvdimm,memdev=backing,label-size={_LABEL},uuid={uuid.uuid4()}"
    machine = launch_machine(qemu_args=("-object", backend, "-device", nvdimm, *Qtest.arguments(qtest_path)))
    before = machine.guest.memory.persistent()
    assert len(before) == 1
    assert medium.read(machine, "nvdimm") == medium.words
    with Qtest.at(qtest_path) as qtest:
        words = medium.write(machine, "nvdimm", qtest)
    with nothing_changes(machine):
        with pytest.raises(QmpRefused, match="nvdimm device hot unplug is not supported yet"):
            machine.qmp.execute("device_del", {"id": "nvdimm"})
        machine.reboot()
    assert machine.guest.memory.persistent() == before
    assert medium.read(machine, "nvdimm") == medium.words == words


def test_a_machine_that_is_to_have_no_nvdimms_takes_none(launch_machine: LaunchMachine) -> None:
    """M28."""
    machine = launch_machine(image=None, boot=False, qemu_args="-machine nvdimm=off")
    with nothing_changes(machine), pytest.raises(QmpRefused, match="nvdimm device found but 'nvdimm=off' was set"):
        machine.nvdimms.plug()


@pytest.mark.parametrize("share", [True, False], ids=["shared", "private"])
def test_an_nvdimm_is_kept_in_the_memory_that_it_is_given(
    launch_machine: LaunchMachine, medium: Medium, qtest_path: Path, share: bool
) -> None:
    """M28: the host's side of persistence: what the machine writes outlives it in the file, unless it has the file for itself."""
    machine = launch_machine(image=None, boot=False, qemu_args=Qtest.arguments(qtest_path))
    nvdimm = machine.nvdimms.plug(backend=Backend("file", mem_path=str(medium.file), share=share), wait=False)
    before = medium.words
    assert medium.read(machine, nvdimm.id) == before
    with Qtest.at(qtest_path) as qtest:
        words = medium.write(machine, nvdimm.id, qtest)
    assert medium.read(machine, nvdimm.id) == words
    machine.quit()
    assert medium.words == (words if share else before)
