"""What the XICS interrupt presenters have for the CPUs of a machine, as ``info pic`` shows it."""

from __future__ import annotations

import re

from pytest_spapr import Deadline, MachineError, PseriesMachine

_XIRR = re.compile(r"XIRR=([0-9a-f]{8})")
# The CPU takes interrupts of any priority, and none is presented to it (LoPAR: CPPR and XISR).
_AT_REST = "ff000000"


def stop_at_rest(machine: PseriesMachine) -> None:
    """Pause the machine while no CPU is at an interrupt: the next one is presented at once, and the CPU has not begun to ask for it.

    :raises DeadlineExpired: none of its pauses was such a moment.
    """
    deadline = Deadline(machine.budgets.plug)
    machine.stop()
    while set(_presenters(machine)) != {_AT_REST}:
        machine.cont()
        deadline.require("a moment without interrupts", f"XIRR of each CPU at the last: {_presenters(machine)}")
        machine.stop()


def require_presented(machine: PseriesMachine) -> None:
    """See that an interrupt is held for a CPU, which has not taken it.

    :raises MachineError: there is none.
    """
    if not any(int(xirr[2:], 16) for xirr in _presenters(machine)):
        raise MachineError(f"no interrupt is presented to any CPU: XIRR {_presenters(machine)}")


def _presenters(machine: PseriesMachine) -> list[str]:
    return _XIRR.findall(machine.qmp.hmp("info pic"))
