"""PCI devices."""

from __future__ import annotations

from pathlib import Path

import pytest

from pytest_spapr import PseriesMachine, QmpRefused

from ...hotplug.disks import backing
from ...hotplug.inventory import nothing_changes
from .cases import Case

CARDS = (
    Case("P05", r"'nope' is not a valid device model name", {"driver": "nope"}),
    Case("P05", r"Parameter 'driver' expects (a )?(pluggable|non-abstract) device type", {"driver": "pci-device"}),
    Case("P05", r"Property '(virtio-rng-pci)?\.?nonsense' not found", {"nonsense": 1}),
    Case("P05", r"Bus 'nope' not found", {"bus": "nope"}),
    Case("P05", r"Bus 'spapr-vio' does not support hotplugging", {"driver": "spapr-vty", "bus": "spapr-vio"}),
    Case("P05", r"Bus '.*' does not support hotplugging|No '.*' bus found|can't go on", {"driver": "usb-tablet"}),
    Case("P13", r"PCI: slot 7 (already occupied by|function 0 not available for) virtio-rng-pci", {"addr": "7"}),
    Case("P13", r"PCI: slot 7 function 0 already occupied by virtio-rng-pci", {"addr": "7.1"}),
    Case("P13", r"addr.*'?7\.8'?|'?7\.8'?", {"addr": "7.8"}),
    Case("P13", r"addr.*'?7\.-1'?|'?7\.-1'?", {"addr": "7.-1"}),
    Case("P13", r"addr.*'?20'?|'?20'?", {"addr": "20"}),
    Case("P05", r"drive property not set", {"driver": "virtio-blk-pci"}),
    Case(
        "P05",
        r"[Cc]an't find value 'nope'|Cannot find device='' nor node-name='nope'",
        {"driver": "virtio-blk-pci", "drive": "nope"},
    ),
    Case("P05", r"logical_block_size", {"driver": "virtio-blk-pci", "drive": "disk", "logical_block_size": 513}),
    Case("P05", r"num-queues", {"driver": "virtio-blk-pci", "drive": "disk", "num-queues": 0}),
    Case("P05", r"queue-size", {"driver": "virtio-blk-pci", "drive": "disk", "queue-size": 3}),
    Case("P05", r"bootindex", {"driver": "virtio-blk-pci", "drive": "disk", "bootindex": "first"}),
    Case("P05", r"serial property not set|'serial' parameter is missing|serial", {"driver": "nvme", "drive": "disk"}),
    Case("P14", r"[Cc]an't find value 'nope'|netdev.*nope", {"driver": "virtio-net-pci", "netdev": "nope", "romfile": ""}),
    Case("P14", r"mac", {"driver": "virtio-net-pci", "mac": "nonsense", "romfile": ""}),
    Case("P14", r"failed to find romfile", {"driver": "e1000", "romfile": "nope.rom"}),
    Case(
        "P14",
        r"IOMMU_PLATFORM was supported by neither legacy",
        {"driver": "virtio-net-pci", "iommu_platform": True, "romfile": ""},
    ),
    Case(
        "P32",
        r"failover primary device must be on PCIExpress bus",
        {"driver": "e1000e", "failover_pair_id": "nope", "romfile": ""},
    ),
    Case("P15", r'PCI Bridge lacks a "chassis_nr" property|chassis', {"driver": "pci-bridge"}),
)


@pytest.mark.parametrize("case", CARDS, ids=lambda case: f"{case.ids}-{case.words}")
def test_a_bad_card_is_refused(machine: PseriesMachine, tmp_path: Path, case: Case) -> None:
    """P05, P13, P14, P15, P32: and its node is not in use."""
    machine.pci.plug("virtio-rng-pci", slot=7)
    backing(machine, tmp_path / "disk", size=1 << 20)
    arguments = {"driver": "virtio-rng-pci", "id": "bad", **case.arguments}
    with nothing_changes(machine), pytest.raises(QmpRefused, match=case.words):
        machine.qmp.execute("device_add", arguments)
    machine.qmp.execute("blockdev-del", {"node-name": "disk"})


def test_a_node_comes_once(machine: PseriesMachine, tmp_path: Path) -> None:
    """P05: not twice by name, and its file is locked for a second disk; the next bridge has a chassis of its own."""
    node = backing(machine, tmp_path / "disk", size=1 << 20)
    machine.pci.plug("virtio-blk-pci", drive=node)
    machine.pci.plug("pci-bridge", chassis_nr=1)
    again = {"driver": "file", "filename": str(tmp_path / "disk"), "node-name": "again"}
    with nothing_changes(machine):
        with pytest.raises(QmpRefused, match=r"Duplicate node(s with node-name='disk'| name)"):
            machine.qmp.execute("blockdev-add", {**again, "node-name": "disk"})
        machine.qmp.execute("blockdev-add", again)
        with pytest.raises(QmpRefused, match='Failed to get "write" lock'):
            machine.pci.plug("virtio-blk-pci", drive="again")
        with pytest.raises(QmpRefused, match="Bridge chassis 1 already in use"):
            machine.pci.plug("pci-bridge", chassis_nr=1)
        machine.qmp.execute("blockdev-del", {"node-name": "again"})
