"""The machine is stopped, and goes on, at each thing that happens to a connector while a device comes and goes."""

from __future__ import annotations

import threading

import pytest

from pytest_spapr import Kind, Lane, PseriesMachine, Record
from pytest_spapr.hotplug.attempt import Views
from pytest_spapr.hotplug.evidence import Clue
from pytest_spapr.hotplug.outcome import Presence

from .inventory import await_deleted, told
from .kinds import plug


class Stumbling:
    """Stops the machine at each trace of its connectors and has it go on, from a thread of its own. :ivar stops: at which it did."""

    def __init__(self, machine: PseriesMachine) -> None:
        self.stops: list[str] = []
        self._machine = machine
        self._seen: list[Record] = []
        self._more = threading.Condition()
        self._over = False
        self._thread = threading.Thread(target=self._work, name="stumbling")
        machine.timeline.listen(self._hear)

    def __enter__(self) -> Stumbling:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with self._more:
            self._over = True
            self._more.notify()
        self._thread.join()

    def _hear(self, record: Record) -> None:
        if record.lane is Lane.DRC and not self._over:
            with self._more:
                self._seen.append(record)
                self._more.notify()

    def _work(self) -> None:
        while True:
            with self._more:
                self._more.wait_for(lambda: self._seen or self._over)
                if not self._seen:
                    return
                record, self._seen = self._seen[-1], []
            self._machine.qmp.execute("stop")
            self._machine.qmp.execute("cont")
            self.stops.append(record.text.split()[0])


@pytest.mark.parametrize("kind", [Kind.CORE, Kind.DIMM, Kind.PCI], ids=str)
def test_stops_on_the_way_change_nothing(machine: PseriesMachine, kind: Kind) -> None:
    """C08, M04, P04, X09: it comes and goes as ever, told once."""
    since = machine.timeline.mark()
    with Stumbling(machine) as coming:
        device = plug(machine, kind, wait=False)
        machine.await_records(lambda record: device.plug_clue(record, []) is Clue.DONE, 1, since, "the guest to have it")
    assert device.configured
    since = machine.timeline.mark()
    with Stumbling(machine) as going:
        machine.qmp.execute("device_del", {"id": device.id})
        await_deleted(machine, since, device.id)
    machine.guest.settle()
    assert device.views() == Views(Presence.ABSENT, Presence.ABSENT)
    assert not device.waiting
    assert told(machine, since) == [device.id]
    assert coming.stops
    assert going.stops
