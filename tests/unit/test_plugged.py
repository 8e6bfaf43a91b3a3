"""What was plugged in, from what was said on the monitor."""

from __future__ import annotations

from typing import Any

import pytest

from pytest_spapr.errors import MachineError
from pytest_spapr.qemu.plugged import Plugged, inventory, plugged, settled
from pytest_spapr.timeline import Lane, Timeline


class Monitor:
    """A monitor that answers from a table. :ivar timeline: what was said on it."""

    def __init__(self, **answers: Any) -> None:
        self.timeline = Timeline()
        self.answers = answers
        self._asked = 0

    def say(self, command: str, *, answer: str = "return", **arguments: Any) -> None:
        self._asked += 1
        self.timeline.record(Lane.QMP, "->", {"execute": command, "arguments": arguments, "id": self._asked})
        self.timeline.record(Lane.QMP, "<-", {answer: {}, "id": self._asked})

    def gone(self, **data: str) -> None:
        self.timeline.record(Lane.EVENT, "DEVICE_DELETED", {"event": "DEVICE_DELETED", "data": data})

    def plugged(self) -> list[str]:
        return [one.id for one in plugged(self.timeline.since())]

    def execute(self, command: str, arguments: Any = None) -> Any:
        given = arguments or {}
        return self.answers[":".join((command.replace("-", "_"), *(given[key] for key in ("path", "property") if key in given)))]


def test_what_was_plugged_in_and_has_not_gone() -> None:
    monitor = Monitor()
    monitor.say("object-add", **{"qom-type": "memory-backend-ram", "id": "memory"})
    for name in ("one", "two", "three"):
        monitor.say("device_add", driver="pc-dimm", id=name)
    monitor.say("device_add", answer="error", driver="pc-dimm", id="refused")
    monitor.say("device_add", driver="virtio-rng-pci")
    monitor.say("object-add", **{"qom-type": "rng-random", "id": "deleted"})
    monitor.say("object-del", id="deleted")
    monitor.say("device_del", id="three")
    monitor.gone(path="/machine/peripheral/one/thread[0]")
    monitor.gone(device="one", path="/machine/peripheral/one")
    assert monitor.plugged() == ["memory", "two", "three"]
    monitor.say("device_add", driver="pc-dimm", id="one")
    assert monitor.plugged() == ["memory", "two", "three", "one"]


# QEMU 7.2, and 10.0.
@pytest.mark.parametrize("pci_type", ["int32", "str"])
def test_a_place_that_qemu_chose_is_said(pci_type: str) -> None:
    monitor: Any = Monitor(
        **{
            "qom_list:/machine/peripheral/dimm1": [{"name": "slot", "type": "int32"}, {"name": "addr", "type": "uint64"}],
            "qom_get:/machine/peripheral/dimm1:addr": 1 << 30,
            "qom_list:/machine/peripheral/card1": [{"name": "addr", "type": pci_type}, {"name": "realized", "type": "bool"}],
            "qom_get:/machine/peripheral/card1:addr": 25,
            "qom_get:/machine/peripheral/card1:parent_bus": "/machine/unattached/device[3]/pci.0",
        }
    )
    devices = [
        Plugged("object-add", {"qom-type": "memory-backend-ram", "id": "memory"}),
        Plugged("device_add", {"driver": "pc-dimm", "id": "dimm1", "slot": 3}),
        Plugged("device_add", {"driver": "virtio-rng-pci", "id": "card1"}),
    ]
    assert [one.options()[1] for one in settled(monitor, devices)] == [
        "memory-backend-ram,id=memory",
        "pc-dimm,id=dimm1,slot=3,addr=1073741824",
        "virtio-rng-pci,id=card1,addr=0x3.0x1,bus=pci.0",
    ]


def test_what_no_command_line_can_say_is_an_error() -> None:
    one = Plugged("device_add", {"driver": "x", "id": "card1", "list": [1]})
    with pytest.raises(MachineError, match=r"card1 was plugged with list=\[1\].*unplug it before"):
        one.options()


def test_the_inventory_tells_what_can_come_and_go() -> None:
    monitor: Any = Monitor(
        **{
            "qom_list:/machine/peripheral": [{"name": "type", "type": "string"}, {"name": "core1", "type": "child<core>"}],
            "qom_list:/objects": [
                {"name": "ram", "type": "child<memory-backend-file>"},
                {"name": "monitor", "type": "child<monitor-qmp>"},
            ],
            "query_hotpluggable_cpus": [{"props": {"core-id": 0}, "qom-path": "/x"}, {"props": {"core-id": 1}}],
            "query_memory_devices": [{"type": "dimm", "data": {"id": "dimm1", "slot": 1, "addr": 4096}}],
        }
    )
    assert inventory(monitor) == {
        "device core1": "device",
        "object ram": "object",
        "core 0": "core",
        "memory device dimm1": "slot 1 at 0x1000",
    }
