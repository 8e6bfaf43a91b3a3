"""End-to-end hot-unplug testing of QEMU's pseries machine.

The public names are imported when they are first used, so that ``import pytest_spapr`` costs next to nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pytest_spapr.deadline import Deadline
    from pytest_spapr.errors import (
        BootFailed,
        CommandFailed,
        DeadlineExpired,
        GuestError,
        LaunchFailed,
        MachineDied,
        MachineError,
        QmpRefused,
        SpaprError,
        SshFailed,
    )
    from pytest_spapr.fixtures import LaunchMachine
    from pytest_spapr.guest.guest import Guest
    from pytest_spapr.hotplug.attempt import Attempt
    from pytest_spapr.hotplug.backend import Backend
    from pytest_spapr.hotplug.contract import Contract
    from pytest_spapr.hotplug.defects import KnownDefect
    from pytest_spapr.hotplug.expectation import Expectation
    from pytest_spapr.hotplug.management import Verdict
    from pytest_spapr.hotplug.outcome import Kind, Outcome, Presence, Silence
    from pytest_spapr.hotplug.pseries import PseriesMachine
    from pytest_spapr.hotplug.rtas import PlayedGuest
    from pytest_spapr.images.store import GuestImage
    from pytest_spapr.machine import Machine
    from pytest_spapr.qemu.argv import MachineSpec
    from pytest_spapr.qemu.build import QemuBuild
    from pytest_spapr.qemu.qmp import Qmp
    from pytest_spapr.qemu.qtest import Qtest
    from pytest_spapr.timeline import Lane, Record, Timeline

_HOMES = {
    "Attempt": "hotplug.attempt",
    "Backend": "hotplug.backend",
    "BootFailed": "errors",
    "CommandFailed": "errors",
    "Contract": "hotplug.contract",
    "Deadline": "deadline",
    "DeadlineExpired": "errors",
    "Expectation": "hotplug.expectation",
    "Guest": "guest.guest",
    "GuestError": "errors",
    "GuestImage": "images.store",
    "Kind": "hotplug.outcome",
    "KnownDefect": "hotplug.defects",
    "Lane": "timeline",
    "LaunchFailed": "errors",
    "LaunchMachine": "fixtures",
    "Machine": "machine",
    "MachineDied": "errors",
    "MachineError": "errors",
    "MachineSpec": "qemu.argv",
    "Outcome": "hotplug.outcome",
    "PlayedGuest": "hotplug.rtas",
    "Presence": "hotplug.outcome",
    "PseriesMachine": "hotplug.pseries",
    "QemuBuild": "qemu.build",
    "Qmp": "qemu.qmp",
    "QmpRefused": "errors",
    "Qtest": "qemu.qtest",
    "Record": "timeline",
    "Silence": "hotplug.outcome",
    "SpaprError": "errors",
    "SshFailed": "errors",
    "Timeline": "timeline",
    "Verdict": "hotplug.management",
}

__all__ = [
    "Attempt",
    "Backend",
    "BootFailed",
    "CommandFailed",
    "Contract",
    "Deadline",
    "DeadlineExpired",
    "Expectation",
    "Guest",
    "GuestError",
    "GuestImage",
    "Kind",
    "KnownDefect",
    "Lane",
    "LaunchFailed",
    "LaunchMachine",
    "Machine",
    "MachineDied",
    "MachineError",
    "MachineSpec",
    "Outcome",
    "PlayedGuest",
    "Presence",
    "PseriesMachine",
    "QemuBuild",
    "Qmp",
    "QmpRefused",
    "Qtest",
    "Record",
    "Silence",
    "SpaprError",
    "SshFailed",
    "Timeline",
    "Verdict",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value
