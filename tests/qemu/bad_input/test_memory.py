"""DIMMs and their backends."""

from __future__ import annotations

from typing import Any

import pytest

from pytest_spapr import LaunchFailed, LaunchMachine, PseriesMachine, QmpRefused

from ...hotplug.inventory import nothing_changes
from .cases import Case

_MIB = 1 << 20

DIMMS = (
    Case("M18", "exceeds the number of numa nodes: 1", {"node": 2}),
    Case("M20", "address must be aligned to", {"addr": 0x2}),
    Case("M20", "usable range for memory devices", {"addr": 1 << 45}),
    Case("M20", "usable range for memory devices", {"addr": 0x3000_0000}),
    Case("M24", "not enough space, currently 0x10000000 in use of total space for memory devices 0xc0000000", {"size": 3072}),
    Case("M24", r"invalid slot number -2, valid range is \[0-1\]", {"slot": -2}),
    Case("M24", r"invalid slot number 99, valid range is \[0-1\]", {"slot": 99}),
    Case("M24", "slot 0 is busy", {"slot": 0}),
)


@pytest.mark.parametrize("case", DIMMS, ids=str)
def test_a_bad_dimm_is_refused(machine: PseriesMachine, case: Case) -> None:
    """M18, M20, M24: and its backend is deleted again."""
    machine.dimms.plug(slot=0)
    with nothing_changes(machine), pytest.raises(QmpRefused, match=case.words):
        machine.dimms.plug(device_id="bad", **case.arguments)


def test_a_dimm_over_another_is_refused(machine: PseriesMachine) -> None:
    """M20."""
    machine.dimms.plug()
    taken = machine.qmp.execute("query-memory-devices")[0]["data"]["addr"]
    with nothing_changes(machine), pytest.raises(QmpRefused, match="address range conflicts with memory device id='dimm1'"):
        machine.dimms.plug(device_id="bad", addr=taken)


def test_a_dimm_without_a_slot_left_is_refused(machine: PseriesMachine) -> None:
    """M24."""
    for _ in range(2):
        machine.dimms.plug()
    with nothing_changes(machine), pytest.raises(QmpRefused, match="no free slots available"):
        machine.dimms.plug(device_id="bad")


def test_a_dimm_of_half_an_lmb_is_refused(machine: PseriesMachine) -> None:
    """M19."""
    with nothing_changes(machine):
        machine.qmp.execute("object-add", {"qom-type": "memory-backend-ram", "id": "odd", "size": 3 * _MIB})
        with pytest.raises(QmpRefused, match="Hotplugged memory size must be a multiple of 256 MB"):
            machine.qmp.execute("device_add", {"driver": "pc-dimm", "id": "bad", "memdev": "odd"})
        machine.qmp.execute("object-del", {"id": "odd"})


def test_a_busy_or_missing_backend_is_refused(machine: PseriesMachine) -> None:
    """M24."""
    dimm = machine.dimms.plug()
    with nothing_changes(machine):
        with pytest.raises(QmpRefused, match=f"can't use already busy memdev: {dimm.backend}"):
            machine.qmp.execute("device_add", {"driver": "pc-dimm", "id": "bad", "memdev": dimm.backend})
        with pytest.raises(QmpRefused, match="Device 'nope' not found"):
            machine.qmp.execute("device_add", {"driver": "pc-dimm", "id": "bad", "memdev": "nope"})
        with pytest.raises(QmpRefused, match="'memdev' property"):
            machine.qmp.execute("device_add", {"driver": "pc-dimm", "id": "bad"})


_SIZE = {"size": 256 * _MIB}
BACKENDS = (
    Case("M15", "cannot set up guest memory 'bad': Cannot allocate memory", {"size": 1 << 50}),
    Case("M15", "cannot set up guest memory 'bad': Cannot allocate memory", {"size": 1 << 63}),
    Case("M16", "property 'size' of memory-backend-ram doesn't take value '0'", {"size": 0}),
    Case("M17", "host-nodes must be set for policy bind", {**_SIZE, "policy": "bind"}),
    Case("M17", "host-nodes must be set for policy interleave", {**_SIZE, "policy": "interleave"}),
    Case("M17", "host-nodes must be empty for policy default", {**_SIZE, "host-nodes": [0]}),
    Case("M17", "cannot bind memory to host NUMA nodes: Invalid argument", {**_SIZE, "policy": "bind", "host-nodes": [99]}),
    Case("M17", "Invalid host-nodes value: 128", {**_SIZE, "policy": "bind", "host-nodes": [128]}),
    Case("M14", "property 'prealloc-threads' of memory-backend-ram doesn't take value '0'", {**_SIZE, "prealloc-threads": 0}),
)


@pytest.mark.spapr_defect("backend-size-wraps")
def test_a_backend_as_large_as_can_be_said_is_refused(machine: PseriesMachine) -> None:
    """M15: one byte less than 2^64."""
    with nothing_changes(machine), pytest.raises(QmpRefused):
        machine.qmp.execute("object-add", {"qom-type": "memory-backend-ram", "id": "bad", "size": (1 << 64) - 1})


@pytest.mark.spapr_defect("dimm-between-lmbs")
def test_a_dimm_at_no_lmbs_address_is_refused(machine: PseriesMachine) -> None:
    """M20: its LMBs would be where its memory is not."""
    with nothing_changes(machine), pytest.raises(QmpRefused):
        machine.dimms.plug(addr=0x4020_0000)


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        ({"slots": 0, "max_memory": 1024}, "please specify the (maxmem|'slots') option|specifying the maxmem option"),
        ({"slots": 2, "max_memory": 1280}, "not enough space, currently 0x0 in use of total space for memory devices 0x10000000"),
    ],
    ids=["none", "too little"],
)
def test_a_machine_without_room_takes_no_dimm(launch_machine: LaunchMachine, shape: dict[str, Any], words: str) -> None:
    """M24, M39."""
    machine = launch_machine(image=None, boot=False, **shape)
    with nothing_changes(machine), pytest.raises(QmpRefused, match=words):
        machine.dimms.plug(512, device_id="bad")


def test_a_machine_has_no_more_slots_than_qemu_can(launch_machine: LaunchMachine) -> None:
    """M22, M24: 32 under TCG; KVM's number is the host's."""
    with pytest.raises(LaunchFailed, match="Specified number of memory slots 33 exceeds max supported 32"):
        launch_machine(image=None, boot=False, slots=33, max_memory=16384)


@pytest.mark.parametrize("case", BACKENDS, ids=lambda case: f"{case.ids}-{case.words}")
def test_a_bad_backend_is_refused(machine: PseriesMachine, case: Case) -> None:
    """M15, M16, M17."""
    with nothing_changes(machine), pytest.raises(QmpRefused, match=case.words):
        machine.qmp.execute("object-add", {"qom-type": "memory-backend-ram", "id": "bad", **case.arguments})
