"""Cores that QEMU does not take or give up."""

from __future__ import annotations

import re

import pytest

from pytest_spapr import LaunchMachine, PseriesMachine, QemuBuild, QmpRefused

from ...hotplug.inventory import nothing_changes
from ...hotplug.threads import start_with_threads
from .cases import ALWAYS, Case, Refused
from .machines import old_machine

CORES = (
    Case("C19", "core 0 already populated", {"core-id": 0}),
    Case("C19", "core 1 already populated", {"core-id": 1}),
    Case("C19", "core 0 already populated", {}),
    Case("C20", "[Ii]nvalid core id -1", {"core-id": -1}),
    Case("C20", "[Ii]nvalid core id -2", {"core-id": -2}),
    Case("C21", "invalid nr-threads 2, must be 1", {"core-id": 2, "nr-threads": 2}),
    Case("C21", "invalid nr-threads 0, must be 1", {"core-id": 2, "nr-threads": 0}),
    Case("C22", "core id 4 out of range", {"core-id": 4}),
    Case("C22", "core id 256 out of range", {"core-id": 256}),
    Case("C22", "invalid node-id, must be 0", {"core-id": 2, "node-id": 1}),
)


@pytest.mark.parametrize("case", CORES, ids=str)
def test_a_bad_core_is_refused(machine: PseriesMachine, case: Case) -> None:
    """C19, C20, C21, C22, C23."""
    driver = machine.cores.slots()[0]["type"]
    with nothing_changes(machine), pytest.raises(QmpRefused, match=case.words):
        machine.qmp.execute("device_add", {"driver": driver, "id": "bad", **case.arguments})


def test_a_core_between_two_others_is_refused(launch_machine: LaunchMachine) -> None:
    """C20, C21: with several threads a core's number is that of its first one, and each core has as many."""
    machine = start_with_threads(launch_machine, threads=2, image=None, boot=False, max_cpus=4)
    driver = machine.cores.slots()[0]["type"]
    for arguments, words in (
        ({"core-id": 3}, "invalid core id 3"),
        ({"core-id": 2, "nr-threads": 1}, "invalid nr-threads 1, must be 2"),
    ):
        with nothing_changes(machine), pytest.raises(QmpRefused, match=words):
            machine.qmp.execute("device_add", {"driver": driver, "id": "bad", **arguments})


def test_a_core_of_another_model_is_refused(machine: PseriesMachine) -> None:
    """C19."""
    own = machine.cores.slots()[0]["type"]
    other = next(model for model in ("power8_v2.0-spapr-cpu-core", "power9_v2.0-spapr-cpu-core") if model[:6] != own[:6])
    with nothing_changes(machine), pytest.raises(QmpRefused, match=f"CPU core type should be {re.escape(own)}"):
        machine.qmp.execute("device_add", {"driver": other, "id": "bad", "core-id": 2})


def test_a_machine_without_core_hotplug_says_so(launch_machine: LaunchMachine, qemu_build: QemuBuild) -> None:
    """C22: cores come and go from pseries-2.7 on."""
    # Without a card it has no connector in use, and traces none.
    machine = old_machine(launch_machine, qemu_build, "pseries-2.6", max_cpus=1, qemu_args=("-device", "virtio-rng-pci"))
    with pytest.raises(QmpRefused, match="'query-hotpluggable-cpus' is not enabled"):
        machine.cores.slots()
    with pytest.raises(QmpRefused, match="CPU hotplug not supported for this machine"):
        machine.qmp.execute("device_add", {"driver": "power8_v2.0-spapr-cpu-core", "id": "bad", "core-id": 1})


def test_the_boot_core_stays_by_its_path_too(machine: PseriesMachine) -> None:
    """C38: while the core beside it, of the command line as well, may be asked for."""
    core, other = (machine.cores.boot_core(number) for number in (0, 1))
    Refused("core 0", {ALWAYS: "Boot CPU core may not be unplugged"}, {"id": core.qom_path}).expect(machine, "device_del")
    assert machine.qmp.execute("device_del", {"id": other.qom_path}) == {}
