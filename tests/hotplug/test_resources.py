"""What QEMU and the guest have after many rounds is what they had after the first."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

import pytest

from pytest_spapr import Contract, Kind, PseriesMachine
from pytest_spapr.hotplug.dimms import Dimm
from pytest_spapr.hotplug.drc import unplug_requested
from pytest_spapr.qemu.vmstate import device_state

from .kinds import plug

slow = pytest.mark.spapr_slow
#: MiB that QEMU may have more than before: what its allocator keeps.
SLACK = 24


class Held(NamedTuple):
    """What is to be the same."""

    descriptors: int
    threads: int
    pending: frozenset[int] | None
    nodes: str
    devices: int
    backends: int


def held(machine: PseriesMachine) -> Held:
    process = Path(f"/proc/{machine.process.pid}")
    state = device_state(machine.qmp)
    return Held(
        sum(1 for _ in (process / "fd").iterdir()),
        sum(1 for _ in (process / "task").iterdir()),
        None if state is None else unplug_requested(state),
        machine.guest.ask("find /proc/device-tree/ | sort | md5sum").check().stdout,
        *(len(machine.qmp.execute("qom-list", {"path": path})) for path in ("/machine/peripheral", "/objects")),
    )


def resident(machine: PseriesMachine) -> int:
    """Return the MiB of QEMU's own memory: all that is no file's, without the guest's RAM, of which a clone has its own pages."""
    total, mine = 0, True
    for line in Path(f"/proc/{machine.process.pid}/smaps").read_text().splitlines():
        if span := re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line):
            size = int(span[2], 16) - int(span[1], 16)
            mine = size != machine.spec.memory << 20
        elif mine and line.startswith("Anonymous:"):
            total += int(line.split()[1])
    return total // 1024


@pytest.mark.parametrize(
    ("kind", "rounds"),
    [
        (Kind.CORE, 3),
        pytest.param(Kind.CORE, 100, marks=[slow, pytest.mark.spapr(max_cpus=110)]),
        (Kind.DIMM, 10),
        pytest.param(Kind.DIMM, 100, marks=slow),
        pytest.param(Kind.PCI, 25, marks=slow),
    ],
)
def test_nothing_is_left_of_devices_that_came_and_went(
    machine: PseriesMachine, contract: Contract, kind: Kind, rounds: int
) -> None:
    """X11: descriptors, threads, memory, waiting connectors, QEMU's devices, the guest's device tree. A first round fills caches.

    Under TCG each core that ever was keeps a translation context (``tcg-contexts-run-out``), which is in the slack.
    """

    def go_round() -> None:
        device = plug(machine, kind)
        assert device.unplug() == contract.removal(device)
        if isinstance(device, Dimm):
            device.delete_backend()

    go_round()
    before, memory = held(machine), resident(machine)
    for _ in range(rounds):
        go_round()
    assert held(machine) == before
    assert resident(machine) - memory < SLACK + rounds
