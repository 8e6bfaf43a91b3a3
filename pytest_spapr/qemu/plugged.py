"""What was plugged into a QEMU by its monitor and has not gone: what the command line of another one must say of it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

from pytest_spapr.errors import MachineError
from pytest_spapr.timeline import Lane, Record

if TYPE_CHECKING:
    from pytest_spapr.qemu.qmp import Qmp

# Command -> the option that makes the same, and what names the type there.
_OPTIONS: Final = MappingProxyType({"object-add": ("-object", "qom-type"), "device_add": ("-device", "driver")})
# Where a device is, if nobody said where it was to be.
_PLACES: Final = frozenset({"core-id", "index", "slot", "addr"})
_FUNCTIONS: Final = 8


@dataclass(frozen=True, slots=True)
class Plugged:
    """One object or device. :ivar command: that made it. :ivar arguments: of that command."""

    command: str
    arguments: Mapping[str, Any]

    @property
    def id(self) -> str:
        return str(self.arguments["id"])

    def options(self) -> tuple[str, str]:
        """Return the same for a command line: as ``name=value``, for JSON is only known to QEMU 6.2 and later.

        :raises MachineError: a value is a list or an object.
        """
        option, type_key = _OPTIONS[self.command]
        first = str(self.arguments[type_key])
        others = (f"{name}={_word(self, name, value)}" for name, value in self.arguments.items() if name != type_key)
        return option, ",".join((first, *others))


def plugged(records: Iterable[Record]) -> list[Plugged]:
    """Return what QEMU has accepted and has not reported gone, in order, from the records of its monitor."""
    found: dict[tuple[str, str], Plugged] = {}
    for command, arguments in _accepted(records):
        if command in _OPTIONS and "id" in arguments:
            found[command, arguments["id"]] = Plugged(command, arguments)
        elif command == "object-del":
            found.pop(("object-add", arguments["id"]), None)
        elif command == "DEVICE_DELETED":
            found.pop(("device_add", arguments.get("device", "")), None)
    return list(found.values())


def settled(qmp: Qmp, devices: Iterable[Plugged]) -> list[Plugged]:
    """Return the same with the places that QEMU chose, asked of it now: another one would choose the first that is free."""
    return [one if one.command == "object-add" else replace(one, arguments=_placed(qmp, one)) for one in devices]


def inventory(qmp: Qmp) -> dict[str, str]:
    """Return what can come and go, as it is now, and where it is: two QEMUs that differ in it cannot be one machine."""
    found = {}
    for kind, parent in (("device", "/machine/peripheral"), ("object", "/objects")):
        children = qmp.execute("qom-list", {"path": parent})
        # Whether the monitor is an object is the build's.
        mine = (child for child in children if child["type"].startswith("child<") and child["type"] != "child<monitor-qmp>")
        found.update({f"{kind} {child['name']}": kind for child in mine})
    for slot in qmp.execute("query-hotpluggable-cpus"):
        if "qom-path" in slot:
            found[f"core {slot['props']['core-id']}"] = "core"
    for memory in qmp.execute("query-memory-devices"):
        data = memory["data"]
        found[f"memory device {data.get('id')}"] = f"slot {data.get('slot')} at {data.get('addr', 0):#x}"
    return found


def require_same(source: Qmp, destination: Qmp) -> None:
    """Have two QEMUs agree on what can come and go, see :func:`inventory`.

    :raises MachineError: they do not; the message says in what.
    """
    here, there = inventory(source), inventory(destination)
    if differing := sorted(name for name in here.keys() | there.keys() if here.get(name) != there.get(name)):
        what = "; ".join(f"{name} ({here.get(name, 'absent')} here, {there.get(name, 'absent')} there)" for name in differing)
        raise MachineError(
            f"the machine cannot migrate, for the other QEMU has other devices: {what}. It was told of those that device_add and "
            "object-add of QMP made, not of those by HMP, nor that a device has gone that was there from the start."
        )


def _accepted(records: Iterable[Record]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield each command that was answered well, and each event, with their arguments."""
    sent: dict[str, Mapping[str, Any]] = {}
    for record in records:
        said = record.data or {}
        if record.lane is Lane.EVENT:
            yield said["event"], said.get("data", {})
        elif "execute" in said:
            sent[said.get("id", "")] = said
        elif "return" in said and (command := sent.pop(said.get("id", ""), None)) is not None:
            yield command["execute"], command.get("arguments", {})


def _placed(qmp: Qmp, device: Plugged) -> dict[str, Any]:
    path = f"/machine/peripheral/{device.id}"
    arguments = dict(device.arguments)
    for found in qmp.execute("qom-list", {"path": path}):
        name = found["name"]
        if name not in _PLACES or name in arguments:
            continue
        value = qmp.execute("qom-get", {"path": path, "property": name})
        # A PCI device's, whose type is int32 in 7.2 and str in 10.0: its slot and function. A DIMM's is an address.
        pci = name == "addr" and found["type"] != "uint64"
        arguments[name] = f"{value // _FUNCTIONS:#x}.{value % _FUNCTIONS:#x}" if pci else value
        if pci and "bus" not in arguments:
            bus = qmp.execute("qom-get", {"path": path, "property": "parent_bus"})
            arguments["bus"] = bus.rpartition("/")[2]
    return arguments


def _word(one: Plugged, name: str, value: object) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, (int, float, str)):
        return str(value).replace(",", ",,")
    raise MachineError(
        f"{one.id} was plugged with {name}={value!r}, which a command line cannot say, and so the machine cannot migrate: "
        "unplug it before"
    )
