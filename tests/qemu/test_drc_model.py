"""The state machines of the connectors, pair by pair, against a real QEMU. No guest runs here: the test makes its RTAS calls."""

from __future__ import annotations

import tempfile
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest

from pytest_spapr import LaunchMachine, PlayedGuest, PseriesMachine, Qtest
from pytest_spapr.hotplug.device import Device
from pytest_spapr.hotplug.drc import connector_states
from pytest_spapr.hotplug.drc_model import MACHINES, NOT_PENDING, DrcClass, State, Transition, after
from pytest_spapr.hotplug.rtas import Status, answer
from pytest_spapr.qemu.vmstate import device_state
from pytest_spapr.timeline import Lane, Record

PLUG: Final[dict[DrcClass, Callable[[PseriesMachine], Device]]] = {
    DrcClass.CPU: lambda machine: machine.cores.plug(wait=False),
    DrcClass.LMB: lambda machine: machine.dimms.plug(wait=False),
    DrcClass.PCI: lambda machine: machine.pci.plug("virtio-rng-pci", wait=False),
    DrcClass.PHB: lambda machine: machine.phbs.plug(wait=False),
    DrcClass.PMEM: lambda machine: machine.nvdimms.plug(wait=False),
}
# From a connector to the next one of its class; a PCI slot has eight functions.
NEXT: Final = {drc_class: 8 if drc_class is DrcClass.PCI else 1 for drc_class in DrcClass}
# Those that the guest has no part in.
QEMUS: Final = {Transition.ATTACH, Transition.UNPLUG, Transition.RESET}


@dataclass(frozen=True, slots=True)
class Connector:
    """A connector of a class. :ivar device: what is or was behind it; None for one that never had any."""

    index: int
    device: Device | None


class Bench:
    """A machine at ``-S`` and the connectors of one class."""

    def __init__(self, machine: PseriesMachine, guest: PlayedGuest, drc_class: DrcClass) -> None:
        self.machine = machine
        self.drc_class = drc_class
        self._guest = guest

    def after(self, state: State, transition: Transition) -> State | None:
        return after(self.drc_class, state, transition, self.machine.build.features)

    def way_to(self, state: State) -> list[Transition] | None:
        """Return the shortest way of a connector from empty to a state, without a reset, which is for all of them."""
        ways: deque[tuple[State, list[Transition]]] = deque([(State.EMPTY, [])])
        seen = {State.EMPTY}
        while ways:
            here, way = ways.popleft()
            if here is state:
                return way
            for transition in MACHINES[self.drc_class].get(here, {}):
                there = self.after(here, transition)
                if (
                    there is not None
                    and there not in seen
                    and self.allows(here, transition)
                    and transition is not Transition.RESET
                ):
                    seen.add(there)
                    ways.append((there, [*way, transition]))
        return None

    def allows(self, state: State, transition: Transition) -> bool:
        """Return whether QEMU lets it come so far here, where no operating system has said what it can (CAS)."""
        if transition is not Transition.UNPLUG or self.drc_class is not DrcClass.LMB:
            return True
        # A DIMM that is pending is not asked for again, but after a migration.
        return "memory-unplug-before-cas" in self.machine.build.features and state not in NOT_PENDING

    def bring(self, way: list[Transition]) -> Connector:
        """Take a connector along a way."""
        if not way:
            # The one after the last that was used.
            return Connector(PLUG[self.drc_class](self.machine).drcs[0] + NEXT[self.drc_class], None)
        device = PLUG[self.drc_class](self.machine)
        connector = Connector(device.drcs[0], device)
        for transition in way[1:]:
            assert self.do(transition, connector) in (None, Status.SUCCESS)
        return connector

    def do(self, transition: Transition, connector: Connector) -> Status | None:
        """Do it. :return: the guest's call's status; None for what QEMU does."""
        match transition:
            case Transition.ATTACH:
                assert PLUG[self.drc_class](self.machine).drcs[0] == connector.index
            case Transition.UNPLUG:
                assert connector.device is not None
                self.machine.qmp.execute("device_del", {"id": connector.device.id})
            case Transition.RESET:
                self.machine.reset(wait=False)
            case _:
                return self._guest.do(transition, connector.index)
        return None

    def state(self, connector: Connector) -> State:
        """Return the state that QEMU has for a connector."""
        saved = device_state(self.machine.qmp)
        assert saved is not None
        if (state := connector_states(saved).get(connector.index)) is not None:
            return state
        children = self.machine.qmp.execute("qom-list", {"path": f"/dr-connector/{connector.index:x}"})
        return State.CONFIGURED if any(child["name"] == "device" for child in children) else State.EMPTY

    def deleted(self, since: int, device: Device) -> int:
        """Return how often the end of a device was told since the cursor."""
        self.machine.status()  # its answer comes after the events, but for those of call_rcu
        return sum(self._tells(record, device) for record in self.machine.timeline.since(since, Lane.EVENT))

    def await_deleted(self, since: int, device: Device) -> None:
        """Wait until the end of a device is told."""
        self.machine.await_records(lambda record: self._tells(record, device), 1, since, f"the end of {device.id}")

    @staticmethod
    def _tells(record: Record, device: Device) -> bool:
        return bool(record.event == "DEVICE_DELETED" and record.data and record.data["data"].get("device") == device.id)

    def status(self, state: State, transition: Transition) -> Status | None:
        """Return what the guest is to be told of it."""
        if transition in QEMUS:
            return None
        return answer(state, transition, self.after(state, transition))


@pytest.fixture
def bench(launch_machine: LaunchMachine, drc_class: DrcClass) -> Iterator[Bench]:
    with tempfile.TemporaryDirectory(prefix="spapr-") as directory:
        path = Path(directory, "qtest")
        shape = {"max_cpus": 32, "slots": 32, "max_memory": 16384}
        machine = launch_machine(image=None, boot=False, qemu_args=Qtest.arguments(path), **shape)
        with Qtest.at(path) as qtest:
            yield Bench(machine, PlayedGuest(qtest), drc_class)


@pytest.mark.parametrize(("drc_class", "state"), [(drc_class, state) for drc_class, table in MACHINES.items() for state in table])
def test_a_connector_goes_where_the_model_says(bench: Bench, state: State) -> None:
    """Whatever can happen to it in this state; and a device that goes by it is told of, once."""
    way = bench.way_to(state)
    if way is None:
        pytest.skip(f"{bench.machine.build.version_text} takes no {bench.drc_class} there before an operating system runs")
    # A reset comes last: it is for all of them.
    for transition in sorted(MACHINES[bench.drc_class][state], key=lambda transition: transition is Transition.RESET):
        if not bench.allows(state, transition):
            continue
        connector = bench.bring(way)
        assert bench.state(connector) is state
        since = bench.machine.timeline.mark()
        promised = bench.status(state, transition), bench.after(state, transition)
        assert (bench.do(transition, connector), bench.state(connector)) == promised, transition
        if connector.device is not None:
            goes = promised[1] is State.EMPTY
            if goes:
                bench.await_deleted(since, connector.device)
            assert bench.deleted(since, connector.device) == goes, transition


@pytest.mark.parametrize("drc_class", DrcClass)
def test_what_the_guest_has_not_unisolated_cannot_be_configured(bench: Bench) -> None:
    connector = bench.bring([Transition.ATTACH])
    assert bench.do(Transition.CONFIGURE, connector) is Status.NOT_CONFIGURABLE
    assert bench.state(connector) is bench.after(State.EMPTY, Transition.ATTACH)
