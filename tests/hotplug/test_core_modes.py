"""Cores of each generation, interrupt controller and MMU, of each machine type, and on memory of huge pages."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pytest_spapr import Contract, LaunchFailed, LaunchMachine, QemuBuild
from pytest_spapr.qemu.argv import SOUND_WITH_POWER9

from .host import require_huge_pages

#: What a machine is asked for, and what its guest's kernel then says of it, in /proc/cpuinfo or /proc/interrupts.
MODES = [
    pytest.param({"cpu": "power8"}, ("POWER8", "Hash", "XICS"), id="power8"),
    pytest.param({"cpu": "power10"}, ("POWER10", "Radix", "XIVE"), id="power10"),
    pytest.param(
        {"cpu": "power9", "qemu_args": ("-machine", "max-cpu-compat=power8,vsmt=8")},
        ("POWER8 (architected)", "Hash", "XICS"),
        id="power9 as power8 with 8 numbers for each core",
        marks=pytest.mark.spapr_defect("core-without-drc-index"),
    ),
    pytest.param(
        {"cpu": "power10", "qemu_args": ("-machine", "max-cpu-compat=power9,ic-mode=xics")},
        ("POWER9 (architected)", "Radix", "XICS"),
        id="power10 as power9 with XICS",
    ),
    pytest.param(
        {"cpu": "power9", "kernel_args": "disable_radix", "qemu_args": ("-machine", "max-cpu-compat=power9,ic-mode=xive")},
        ("POWER9 (architected)", "Hash", "XIVE"),
        id="power9 with XIVE and hash",
    ),
]


@pytest.mark.parametrize(("shape", "said"), MODES)
def test_a_core_comes_and_goes_in_each_mode(
    launch_machine: LaunchMachine,
    contract: Contract,
    qemu_build: QemuBuild,
    spapr_accelerator: str,
    shape: dict[str, Any],
    said: tuple[str, ...],
) -> None:
    """C45."""
    if shape["cpu"] != "power8" and spapr_accelerator == "tcg" and qemu_build.version < SOUND_WITH_POWER9:
        pytest.skip(f"under TCG no later guest than a POWER8 survives a second core on {qemu_build.version_text}")
    machine = launch_machine(start="boot", **shape)
    guest = machine.guest
    found = guest.ask("cat /proc/cpuinfo /proc/interrupts").check().stdout
    assert [word for word in said if word not in found] == []
    spacing = machine.qmp.execute("qom-get", {"path": "/machine", "property": "vsmt"})
    assert spacing == (8 if "vsmt" in str(shape) else 1)
    core = machine.cores.plug(2)
    assert list(core.hardware_ids) == [2 * spacing]
    assert guest.cpus.online() == {0, 1}
    assert core.unplug() == contract.removal(core)
    assert guest.cpus.present() == {0}


def test_each_slot_of_each_machine_type_takes_its_core(launch_machine: LaunchMachine, qemu_build: QemuBuild) -> None:
    """C18: the types of 2.6 and before have no slots to be filled, and say so."""
    types = {name for name in qemu_build.machines if name.startswith("pseries-") and not name.endswith("sxxm")}
    without = {f"pseries-2.{minor}" for minor in range(1, 7)}
    for name in sorted(types):
        shape: dict[str, Any] = {"machine": name, "max_cpus": 3, "memory": 256, "max_memory": 256, "slots": 0, "cpu": "power8"}
        # Types of 3.1 and before have transactional memory by default, which TCG has not.
        shape["qemu_args"] = ("-machine", "cap-htm=off")
        if name in without:
            with pytest.raises(LaunchFailed, match="This machine version does not support CPU hotplug"):
                launch_machine(image=None, boot=False, **shape)
            continue
        machine = launch_machine(image=None, boot=False, **shape)
        for _ in range(2):
            machine.cores.plug()
        assert all("qom-path" in slot for slot in machine.cores.slots())
        machine.quit()


def test_cores_come_and_go_on_huge_pages(launch_machine: LaunchMachine, contract: Contract) -> None:
    """C16."""
    require_huge_pages(512)
    backend = "memory-backend-memfd,id=huge,size=512M,hugetlb=on"
    machine = launch_machine(memory=512, qemu_args=("-object", backend, "-machine", "memory-backend=huge"))
    guest = machine.guest
    status = Path(f"/proc/{machine.process.pid}/status").read_text()
    assert int(dict(line.split(":") for line in status.splitlines())["HugetlbPages"].split()[0]) > 0
    cores = [machine.cores.plug() for _ in range(3)]
    assert guest.cpus.online() == {0, 1, 2, 3}
    for core in cores:
        assert core.unplug() == contract.removal(core)
    assert guest.cpus.present() == {0}
