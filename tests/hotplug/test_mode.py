"""The mode that a run's options name is the mode of its guests: cells of a matrix are what they are called."""

from __future__ import annotations

import re

import pytest

from pytest_spapr import Guest, PseriesMachine
from pytest_spapr.cells import Cell

#: What the guest's kernel says of a property of the machine, or of a CPU model, in /proc/cpuinfo or /proc/interrupts.
_SAID = {
    "ic-mode=xics": "XICS",
    "ic-mode=xive": "XIVE",
    "max-cpu-compat=power8": "POWER8 (architected)",
    "max-cpu-compat=power9": "POWER9 (architected)",
    "power8": "POWER8",
    "power9": "POWER9",
    "power10": "POWER10",
}


def test_the_guest_is_in_the_mode_that_was_named(guest: Guest, spapr_cell: Cell) -> None:
    settings = spapr_cell.settings
    machine = (settings.machine.value or "").split(",")
    named = [*machine, *([] if "max-cpu-compat" in str(machine) else [settings.cpu.value or ""])]
    expected = {_SAID[word] for word in named if word in _SAID}
    arguments = (settings.kernel_args.value or "").split()
    if "disable_radix" in arguments:
        expected.add("Hash")
    if not expected and not arguments:
        pytest.skip("no mode was named: --spapr-machine, --spapr-cpu, --spapr-kernel-args")
    found = guest.ask("cat /proc/cpuinfo /proc/interrupts /proc/cmdline").check().stdout
    assert [word for word in sorted(expected | set(arguments)) if not re.search(rf"\b{re.escape(word)}", found)] == []


def test_qemu_runs_the_machine_on_the_accelerator_that_was_chosen(machine: PseriesMachine, spapr_accelerator: str) -> None:
    """KVM that was named is KVM: QEMU says so of the machine itself, and never falls back."""
    kvm = machine.qmp.execute("query-kvm")
    assert kvm["enabled"] == (spapr_accelerator == "kvm")
    assert kvm["present"] or spapr_accelerator == "tcg"
