"""PHBs, virtual IO devices, parts of the platform, and what is not there."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from pytest_spapr import PseriesMachine, QemuBuild, QmpRefused

from ...hotplug.inventory import nothing_changes
from .cases import ALWAYS, Refused
from .machines import old_machine

_MANDATORY = '"index" for PAPR PHB is mandatory'
_NO_UINT32 = "Parameter 'index' expects uint32_t"
PHBS = (
    Refused("no index", {ALWAYS: _MANDATORY}, {}),
    # -1 of 32 bits stands for none.
    Refused("index -1 of 32 bits", {ALWAYS: _MANDATORY}, {"index": (1 << 32) - 1}),
    Refused("index -1", {ALWAYS: _NO_UINT32}, {"index": -1}),
    Refused("index of 33 bits", {ALWAYS: _NO_UINT32}, {"index": 1 << 32}),
    Refused("index 31", {ALWAYS: '"index" for PAPR PHB is too large (max 30)'}, {"index": 31}),
    Refused("machine's own", {ALWAYS: "PCI host bridges must have unique indexes", (6,): "PHB 0 already attached"}, {"index": 0}),
    Refused("taken", {ALWAYS: "PCI host bridges must have unique indexes", (6,): "PHB 2 already attached"}, {"index": 2}),
    Refused("no such node", {ALWAYS: "Invalid NUMA node ID for PCI host bridge"}, {"index": 1, "numa_node": 7}),
)


@pytest.mark.parametrize("case", PHBS, ids=str)
def test_a_bad_phb_is_refused(machine: PseriesMachine, case: Refused) -> None:
    """P19."""
    machine.phbs.plug(2)
    case.expect(machine, "device_add", driver="spapr-pci-host-bridge", id="bad")


_VIO = {ALWAYS: "Bus 'spapr-vio' does not support hotplugging"}
_UNPLUGGABLE = {
    ALWAYS: "Parameter 'driver' expects pluggable device type",
    (6,): "Parameter 'driver' expects a pluggable device type",
}
STRANGERS = (
    *(Refused(driver, _VIO, {"driver": driver}) for driver in ("spapr-vscsi", "spapr-vlan", "spapr-vty")),
    Refused("nvram", _UNPLUGGABLE, {"driver": "spapr-nvram"}),
    Refused("connector", _UNPLUGGABLE, {"driver": "spapr-drc-cpu"}),
    Refused("rng", _UNPLUGGABLE | {(10,): "Device 'spapr-rng' does not support hotplugging"}, {"driver": "spapr-rng"}),
    Refused("virtio-mem", {ALWAYS: "'virtio-mem-pci' is not a valid device model name"}, {"driver": "virtio-mem-pci"}),
)


@pytest.mark.parametrize("case", STRANGERS, ids=str)
def test_what_cannot_be_plugged_is_refused(machine: PseriesMachine, case: Refused) -> None:
    """P21: virtual IO adapters, and parts of the platform."""
    case.expect(machine, "device_add", id="bad")


@pytest.mark.parametrize("driver", ["spapr-vscsi", "spapr-vlan", "spapr-vty"])
def test_a_virtual_io_adapter_stays(launch_machine: Callable[..., PseriesMachine], driver: str) -> None:
    """P21: one of the command line; it has no connector that the guest could give it up by."""
    adapter = f"{driver},id=vio0" + (",chardev=nobody" if driver == "spapr-vty" else "")
    machine = launch_machine(image=None, boot=False, qemu_args=("-chardev", "null,id=nobody", "-device", adapter))
    Refused(driver, _VIO, {"id": "vio0"}).expect(machine, "device_del")


def _built_in(machine: PseriesMachine, kind: str) -> str:
    """Return the path of the machine's only device of this type, which nobody named."""
    children = machine.qmp.execute("qom-list", {"path": "/machine/unattached"})
    (name,) = [child["name"] for child in children if child["type"] == f"child<{kind}>"]
    return f"/machine/unattached/{name}"


def test_the_nvram_stays(machine: PseriesMachine) -> None:
    """P21: a virtual IO device that each machine has."""
    Refused("nvram", _VIO, {"id": _built_in(machine, "spapr-nvram")}).expect(machine, "device_del")


@pytest.mark.parametrize("path", ["/machine", "/machine/unattached", "/machine/peripheral"])
def test_what_is_no_device_cannot_be_removed(machine: PseriesMachine, path: str) -> None:
    """C23, M24."""
    words = {ALWAYS: f"{path} is not a hotpluggable device", (10,): f"{path} is not a device"}
    Refused(path, words, {"id": path}).expect(machine, "device_del")


@pytest.mark.parametrize("kind", ["spapr-xive", "spapr-vio-bridge"])
def test_the_removal_of_a_part_of_the_platform_is_accepted_and_not_done(
    launch_machine: Callable[..., PseriesMachine], kind: str
) -> None:
    """C23, P21: QEMU says nothing, for ever. The machine is reset afterwards, with which all that is pending would go."""
    # POWER8 has no XIVE.
    machine = launch_machine(image=None, boot=False, cpu="power9")
    path = _built_in(machine, kind)
    with nothing_changes(machine):
        assert machine.qmp.execute("device_del", {"id": path}) == {}
        machine.reset()
        assert _built_in(machine, kind) == path


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


def test_a_machine_without_phb_hotplug_says_so(launch_machine: Callable[..., PseriesMachine], qemu_build: QemuBuild) -> None:
    """P19: PHBs come and go from pseries-4.0 on."""
    cold = ("-device", "spapr-pci-host-bridge,index=2,id=cold")
    machine = old_machine(launch_machine, qemu_build, "pseries-3.1", qemu_args=cold)
    come, go = "PHB hotplug not supported for this machine", "PHB hot unplug not supported on this machine"
    Refused("plug", {ALWAYS: come}, {"driver": "spapr-pci-host-bridge", "index": 1}).expect(machine, "device_add")
    Refused("unplug", {ALWAYS: go}, {"id": "cold"}).expect(machine, "device_del")
