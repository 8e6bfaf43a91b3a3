"""What QEMU itself refuses, in its own words, with the proof that nothing changed. No guest runs here."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from pytest_spapr import PseriesMachine, QmpRefused

from .inventory import nothing_changes

_MIB = 1 << 20


@pytest.fixture
def machine(launch_machine: Callable[..., PseriesMachine]) -> PseriesMachine:
    """A machine at ``-S`` with two of four cores and two DIMM slots, without a guest."""
    return launch_machine(image=None, boot=False, cpus=2, max_cpus=4, slots=2)


@dataclass(frozen=True)
class Case:
    """A bad ``device_add`` or ``object-add``. :ivar words: QEMU's, as a regular expression."""

    ids: str
    words: str
    arguments: dict[str, Any]

    def __str__(self) -> str:
        return self.words


CORES = (
    Case("C19", "core 0 already populated", {"core-id": 0}),
    Case("C19", "core 1 already populated", {"core-id": 1}),
    Case("C19", "core 0 already populated", {}),
    Case("C20", "[Ii]nvalid core id -1", {"core-id": -1}),
    Case("C20", "[Ii]nvalid core id -2", {"core-id": -2}),
    Case("C21", "invalid nr-threads 2, must be 1", {"core-id": 2, "nr-threads": 2}),
    Case("C22", "core id 4 out of range", {"core-id": 4}),
    Case("C22", "core id 256 out of range", {"core-id": 256}),
)


@pytest.mark.parametrize("case", CORES, ids=str)
def test_a_bad_core_is_refused(machine: PseriesMachine, case: Case) -> None:
    """C19, C20, C21, C22, C23."""
    driver = machine.cores.slots()[0]["type"]
    with nothing_changes(machine), pytest.raises(QmpRefused, match=case.words):
        machine.qmp.execute("device_add", {"driver": driver, "id": "bad", **case.arguments})


def test_a_core_of_another_model_is_refused(machine: PseriesMachine) -> None:
    """C19."""
    own = machine.cores.slots()[0]["type"]
    other = next(model for model in ("power8_v2.0-spapr-cpu-core", "power9_v2.0-spapr-cpu-core") if model[:6] != own[:6])
    with nothing_changes(machine), pytest.raises(QmpRefused, match=f"CPU core type should be {re.escape(own)}"):
        machine.qmp.execute("device_add", {"driver": other, "id": "bad", "core-id": 2})


DIMMS = (
    Case("M18", "exceeds the number of numa nodes: 1", {"node": 2}),
    Case("M20", "address must be aligned to", {"addr": 0x2}),
    Case("M20", "usable range for memory devices", {"addr": 1 << 45}),
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


BACKENDS = (
    Case("M15", "Cannot allocate memory", {"size": 1 << 50}),
    Case("M16", "value '0'|size.*0", {"size": 0}),
    Case("M17", "host-nodes.*policy|policy.*host-nodes|NUMA", {"size": 256 * _MIB, "policy": "bind"}),
    Case("M17", "host.*node|NUMA|Invalid argument", {"size": 256 * _MIB, "policy": "bind", "host-nodes": [99]}),
)


@pytest.mark.parametrize("case", BACKENDS, ids=lambda case: f"{case.ids}-{case.words}")
def test_a_bad_backend_is_refused(machine: PseriesMachine, case: Case) -> None:
    """M15, M16, M17."""
    with nothing_changes(machine), pytest.raises(QmpRefused, match=case.words):
        machine.qmp.execute("object-add", {"qom-type": "memory-backend-ram", "id": "bad", **case.arguments})


def test_an_id_is_used_once(machine: PseriesMachine) -> None:
    """C19, M24."""
    dimm = machine.dimms.plug()
    with nothing_changes(machine), pytest.raises(QmpRefused, match=f"Duplicate (device )?ID '{dimm.id}'"):
        machine.pci.plug("virtio-rng-pci", device_id=dimm.id)


def test_what_is_not_there_cannot_be_removed(machine: PseriesMachine) -> None:
    """C23, M24."""
    with nothing_changes(machine), pytest.raises(QmpRefused, match="Device 'nope' not found") as refused:
        machine.qmp.execute("device_del", {"id": "nope"})
    assert refused.value.error_class == "DeviceNotFound"
