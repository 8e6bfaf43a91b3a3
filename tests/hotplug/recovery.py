"""What becomes of a passed-through device, as scenarios that two settings can play: the peer and the nested host (docs/vfio.md).

Each returns what it showed as lines that do not depend on the setting.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import pytest

from pytest_spapr import Lane, PseriesMachine, QmpRefused
from pytest_spapr.hotplug.attempt import Attempt, Views
from pytest_spapr.hotplug.pci import PciDevice

from .passthrough import await_event

Shown = list[str]
_STATES = ("STOP", "RESUME", "RESET")


class Setting(Protocol):
    """A machine, and the host's side of what is passed through to it."""

    @property
    def machine(self) -> PseriesMachine: ...

    def device(self) -> PciDevice:
        """Return a device of one function that the guest has."""

    def pair(self) -> tuple[Views, Sequence[PciDevice]]:
        """Return what was seen of function 1 while it was there alone, and both functions of a device, 0 first, that the guest has."""

    def use(self, device: PciDevice) -> None:
        """Have the guest's driver use the device, and see data arrive at the host's side."""

    def error(self, device: PciDevice) -> None:
        """Have the host recover from an error of the device."""

    def left(self, device: PciDevice) -> bool:
        """Whether the host's side says that the machine has let go of the device."""


def removal(setting: Setting) -> Shown:
    """The device is used and removed."""
    device = setting.device()
    setting.use(device)
    return [_unplug("it", device.unplug()), _left(setting, device)]


def removal_of_a_pair(setting: Setting) -> Shown:
    """Two functions, each in a container of its own, come and go together."""
    alone, (zero, one) = setting.pair()
    shown = [f"function 1 alone: {alone}", f"with function 0: {one.views()}", _unplug("function 1", one.unplug())]
    before = setting.machine.timeline.mark()
    shown.append(_unplug("function 0", zero.unplug()))
    shown.append(f"events: {_about(setting.machine, before, zero, one)}")
    return [*shown, _left(setting, zero), _left(setting, one)]


def error(setting: Setting) -> Shown:
    """The host recovers while the guest has the device; the unplug that is asked for then completes with a reset."""
    device = setting.device()
    shown = [_error(setting, device), _unplug("it", device.unplug()), _unplug("it again", device.unplug())]
    with pytest.raises(QmpRefused) as refused:
        setting.machine.cont()
    return [*shown, f"cont: {refused.value.description}", *_reset(setting, device), _left(setting, device)]


def error_of_a_pair(setting: Setting) -> Shown:
    """Of two functions, each in a container of its own."""
    _, (zero, one) = setting.pair()
    shown = [_error(setting, one), _unplug("function 0", zero.unplug())]
    return [*shown, *_reset(setting, zero, one), _left(setting, zero), _left(setting, one)]


SCENARIOS: dict[str, Callable[[Setting], Shown]] = {
    "removal": removal,
    "removal of a pair": removal_of_a_pair,
    "error": error,
    "error of a pair": error_of_a_pair,
}


def _error(setting: Setting, device: PciDevice) -> str:
    before = setting.machine.timeline.mark()
    setting.error(device)
    await_event(setting.machine, "STOP", before)
    return f"error: {setting.machine.status()}"


def _reset(setting: Setting, *devices: PciDevice) -> Shown:
    """Reset the machine, which stays stopped: its guest would boot now."""
    machine = setting.machine
    before = machine.timeline.mark()
    machine.reset(wait=False)
    ids = {device.id for device in devices}
    machine.await_records(
        lambda record: record.event == "DEVICE_DELETED" and (record.data or {})["data"].get("device") in ids,
        len(devices),
        before,
        "events DEVICE_DELETED",
    )
    return [f"reset: {_about(machine, before, *devices)}", f"then: {machine.status()}"]


def _about(machine: PseriesMachine, since: int, *devices: PciDevice) -> str:
    """Return the events since the cursor that are about these devices or the machine's state."""
    names = {device.id: f" of function {device.function}" for device in devices}
    told = []
    for record in machine.timeline.since(since, Lane.EVENT):
        named = names.get((record.data or {}).get("data", {}).get("device"))
        if named or record.event in _STATES:
            told.append(f"{record.event}{named or ''}")
    return ", ".join(told)


def _unplug(what: str, attempt: Attempt) -> str:
    """Return an attempt in words, without what is the device's name or its time."""
    words = [f"unplug of {what}: {attempt.outcome}"]
    if attempt.cause:
        words.append(str(attempt.cause))
    if attempt.reply:
        words.append(attempt.reply.replace(attempt.device, "it"))
    return ", ".join([*words, "guest asked" if attempt.asked else "guest not asked", f"{attempt.views}"])


def _left(setting: Setting, device: PciDevice) -> str:
    return f"function {device.function}: {'gone' if setting.left(device) else 'in use'} on the host"
