"""Where a DIMM's memory comes from on the host, and what QEMU does with it there."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import pytest

from pytest_spapr import Backend, Contract, Guest, LaunchMachine, PseriesMachine, QmpRefused
from pytest_spapr.hotplug.dimms import Dimm
from pytest_spapr.timeline import Lane

from .host import huge_pages, require_huge_pages
from .inventory import nothing_changes

_MIB = 1 << 20
_SHARED_MEMORY = "/dev/shm"

POLICIES: tuple[dict[str, Any], ...] = (
    {},
    {"policy": "default"},
    {"policy": "bind", "host-nodes": [0]},
    {"policy": "interleave", "host-nodes": [0]},
    {"policy": "preferred", "host-nodes": [0]},
)
PROPERTIES: tuple[dict[str, Any], ...] = (
    *({name: value} for name in ("dump", "merge", "share", "prealloc", "reserve") for value in (True, False)),
    {"prealloc": True, "prealloc-threads": 2},
)


@pytest.fixture
def bare(launch_machine: LaunchMachine) -> PseriesMachine:
    """A machine at ``-S`` without a guest."""
    return launch_machine(image=None, boot=False)


def has_reserve(machine: PseriesMachine) -> bool:
    """Return whether QEMU's backends can be told not to reserve what they promise: those of 6.1 and later."""
    properties = machine.qmp.execute("qom-list-properties", {"typename": "memory-backend-ram"})
    return any(one["name"] == "reserve" for one in properties)


def comes_and_goes(machine: PseriesMachine, contract: Contract, backend: Backend) -> None:
    """Plug a DIMM with that backend, look at what QEMU made of it, and unplug it."""
    dimm = machine.dimms.plug(backend=backend)
    made = memdev(machine, dimm)
    shown = {name: value for name, value in backend.properties.items() if name in made}
    assert {name: made[name] for name in shown} == shown
    assert dimm.unplug() == contract.removal(dimm)
    dimm.delete_backend()


def memdev(machine: PseriesMachine, dimm: Dimm) -> dict[str, object]:
    """Return what QEMU says of the DIMM's backend."""
    found: list[dict[str, object]] = machine.qmp.execute("query-memdev")
    return next(made for made in found if made["id"] == dimm.backend)


@pytest.mark.parametrize("kind", ["ram", "memfd", "file"])
def test_a_dimm_comes_from_each_kind_of_memory_under_each_policy(
    machine: PseriesMachine, contract: Contract, kind: str, tmp_path: Path
) -> None:
    """M02: as does its guest's memory, of whatever node of the host."""
    place: dict[str, Any] = {"mem-path": str(tmp_path)} if kind == "file" else {}
    for policy in POLICIES:
        try:
            comes_and_goes(machine, contract, Backend(kind, **place, **policy))
        except QmpRefused as error:
            if "Operation not permitted" in str(error):
                pytest.skip(f"this host does not let an ordinary process choose its NUMA nodes, as containers do: {error}")
            raise


def test_a_dimm_comes_from_huge_pages(machine: PseriesMachine, contract: Contract) -> None:
    """M02."""
    require_huge_pages(256)
    for reserve in (True, False):
        properties = {"reserve": reserve} if has_reserve(machine) else {}
        comes_and_goes(machine, contract, Backend("memfd", hugetlb=True, prealloc=reserve, **properties))


def test_the_firmware_comes_up_in_huge_pages(launch_machine: LaunchMachine) -> None:
    """M27."""
    require_huge_pages(1024)
    backend = "memory-backend-memfd,id=huge,hugetlb=on,prealloc=on,size=1024M"
    machine = launch_machine(image=None, qemu_args=("-object", backend, "-machine", "memory-backend=huge"))
    machine.await_records(
        lambda record: record.lane is Lane.CONSOLE and "Welcome to Open Firmware" in record.text, 1, 0, "SLOF's greetings"
    )


def test_each_property_of_a_backend_is_taken(machine: PseriesMachine, contract: Contract) -> None:
    """M03."""
    for properties in PROPERTIES if has_reserve(machine) else [one for one in PROPERTIES if "reserve" not in one]:
        comes_and_goes(machine, contract, Backend(**properties))


def test_memory_shared_with_the_host_holds_what_the_guest_writes(
    machine: PseriesMachine, guest: Guest, contract: Contract
) -> None:
    """M03, M10: under load, with ``discard-data`` on and off; a file that has a name stays, with or without its data."""
    for discard in (False, True):
        path = Path(_SHARED_MEMORY) / f"pytest-spapr-{os.getpid()}"
        try:
            dimm = machine.dimms.plug(backend=Backend("file", mem_path=str(path), share=True, discard_data=discard))
            # A DIMM is all the movable memory that there is, and a file's pages are movable.
            word = "written-by-the-guest"
            guest.run(f"mkdir -p /mnt; mount -t tmpfs none /mnt; yes {word} | head -c {_MIB} > /mnt/load").check()
            sum_before = guest.run("md5sum < /mnt/load").check().stdout
            assert word.encode() in path.read_bytes()
            assert dimm.unplug() == contract.removal(dimm)
            assert guest.run("md5sum < /mnt/load && umount /mnt").check().stdout == sum_before
            dimm.delete_backend()
            assert (word.encode() in path.read_bytes()) is not discard
        finally:
            path.unlink(missing_ok=True)


def test_memory_is_touched_beforehand_by_as_many_threads_as_one_likes(bare: PseriesMachine) -> None:
    """M14: all of it, before QEMU answers; and none of it unless one asks."""

    def resident() -> int:
        status = Path(f"/proc/{bare.process.pid}/status").read_text(encoding="ascii")
        found = re.search(r"^VmRSS:\s+(\d+) kB", status, re.MULTILINE)
        assert found is not None
        return int(found[1]) >> 10

    before = resident()
    bare.dimms.plug(512)
    assert resident() - before < 128
    for threads in (1, 4):
        before = resident()
        bare.dimms.plug(256, backend=Backend(prealloc=True, prealloc_threads=threads))
        # QEMU may have let go of a little of its own meanwhile.
        assert resident() - before > 250


def test_huge_pages_are_reserved_unless_one_says_no(bare: PseriesMachine) -> None:
    """M13: more than the host has is refused at once, or promised to nobody's use."""
    if not has_reserve(bare):
        pytest.skip(f"{bare.build.version_text} reserves always: QEMU 6.1 and later can be told not to")
    free, size = huge_pages()
    wanted = (free * size // (256 * _MIB) + 1) * 256 * _MIB
    beyond = {"qom-type": "memory-backend-memfd", "id": "beyond", "hugetlb": True, "size": wanted}
    with nothing_changes(bare):
        with pytest.raises(QmpRefused, match="Cannot allocate memory"):
            bare.qmp.execute("object-add", {**beyond, "reserve": True})
        with pytest.raises(QmpRefused, match="'prealloc=on' and 'reserve=off' are incompatible"):
            bare.qmp.execute("object-add", {**beyond, "reserve": False, "prealloc": True})
    bare.qmp.execute("object-add", {**beyond, "reserve": False})
    assert [made["reserve"] for made in bare.qmp.execute("query-memdev") if made["id"] == "beyond"] == [False]
    bare.qmp.execute("object-del", {"id": "beyond"})
