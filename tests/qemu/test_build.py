"""What the probe tells of the QEMU under test, against what a machine of it tells."""

from __future__ import annotations

import pytest

from pytest_spapr import LaunchMachine, QemuBuild
from pytest_spapr.qemu.behaviour import BEHAVIOURS, by_version


def test_the_probe_tells_the_truth(qemu_build: QemuBuild, launch_machine: LaunchMachine) -> None:
    qmp = launch_machine(image=None, boot=False).qmp
    version = qmp.execute("query-version")
    assert tuple(version["qemu"][part] for part in ("major", "minor", "micro")) == qemu_build.version
    assert {machine["name"] for machine in qmp.execute("query-machines")} <= qemu_build.machines
    assert {command["name"] for command in qmp.execute("query-commands")} <= qemu_build.features
    models = qmp.execute("qom-list-types", {"implements": "device", "abstract": False})
    assert {model["name"] for model in models} == qemu_build.devices
    machine_type = qmp.execute("qom-get", {"path": "/machine", "property": "type"}).removesuffix("-machine")
    assert machine_type in qemu_build.machines
    properties = {prop["name"] for prop in qmp.execute("qom-list", {"path": "/machine"})}
    assert ("x-vof" in properties) == ("x-vof" in qemu_build.features)
    kvm = qmp.execute("query-kvm")
    assert kvm["enabled"] == ("kvm" in qemu_build.accelerators)


def test_what_hot_unplug_rests_on_is_there(qemu_build: QemuBuild) -> None:
    assert {"device_del", "query-hotpluggable-cpus", "query-memory-devices", "DEVICE_DELETED"} <= qemu_build.features
    assert {"pc-dimm", "virtio-rng-pci", "spapr-vty", "spapr-pci-host-bridge"} <= qemu_build.devices
    assert "pseries" in qemu_build.machines
    assert "tcg" in qemu_build.accelerators


def test_what_a_release_does_on_hot_unplug_is_observed(qemu_build: QemuBuild) -> None:
    assert qemu_build.unprobed is None
    if "Debian" not in (qemu_build.package or ""):
        pytest.skip(f"{qemu_build.version_text} may be patched: only of Debian's is it known what it must do")
    assert qemu_build.features & BEHAVIOURS.keys() == by_version(qemu_build.version)
