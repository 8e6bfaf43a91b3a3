"""The guest's part of a hotplug, played by a test: the RTAS calls of LoPAR 13.5 (dynamic reconfiguration), each on one connector."""

from __future__ import annotations

from enum import IntEnum
from typing import TYPE_CHECKING, Final

from pytest_spapr.hotplug.drc_model import NOT_PENDING, State, Transition

if TYPE_CHECKING:
    from pytest_spapr.qemu.qtest import Qtest

# LoPAR's indicators.
_ISOLATION: Final = 9001
_ALLOCATION: Final = 9003
#: ``set-indicator``'s indicator and value for each transition that it makes.
CELLS: Final = {
    Transition.ISOLATE: (_ISOLATION, 0),
    Transition.UNISOLATE: (_ISOLATION, 1),
    Transition.SET_UNUSABLE: (_ALLOCATION, 0),
    Transition.SET_USABLE: (_ALLOCATION, 1),
}
# ibm,configure-connector's work area: the first word is the index, the second one must be 0.
_WORK_AREA: Final = 0x1002000
# What QEMU has nothing to do for is a success all the same (drc_isolate_logical and its like in hw/ppc/spapr_drc.c).
_DONE_ALREADY: Final = {
    Transition.ISOLATE: {State.EMPTY, State.UNUSABLE, State.POWER_ON, State.AVAILABLE},
    Transition.UNISOLATE: {State.UNISOLATED, State.CONFIGURED},
    Transition.SET_USABLE: {State.AVAILABLE, State.UNISOLATED, State.CONFIGURED},
    Transition.SET_UNUSABLE: {State.EMPTY, State.UNUSABLE},
    Transition.CONFIGURE: {State.CONFIGURED},
}
# A device tree's node takes some dozens of calls, a PHB's with its slots some thousands.
_MOST_PARTS: Final = 100_000


class Status(IntEnum):
    """What a call returns (hw/ppc/spapr.h: ``RTAS_OUT_...``, and ``SPAPR_DR_CC_RESPONSE_...``)."""

    SUCCESS = 0
    HARDWARE_ERROR = -1
    #: Also what QEMU says for an indicator that is not there, and for what it does not support.
    PARAMETER_ERROR = -3
    NOT_CONFIGURABLE = -9003


def answer(state: State, transition: Transition, becomes: State | None) -> Status:
    """Return what the guest is told of a call.

    :param state: of the connector, before it. :param becomes: the state after it, as ``drc_model.after`` says.
    """
    before = NOT_PENDING.get(state, state)
    if (becomes is not None and becomes is not state) or before in _DONE_ALREADY[transition]:
        return Status.SUCCESS
    if transition is Transition.CONFIGURE:
        return Status.NOT_CONFIGURABLE
    if transition is Transition.ISOLATE and before is State.CONFIGURED:
        # An LMB that nobody asked for.
        return Status.HARDWARE_ERROR
    return Status.PARAMETER_ERROR


class PlayedGuest:
    """Makes the calls of a guest that takes or gives up what is behind a connector.

    :param qtest: of a machine without a guest, most often at ``-S``.
    """

    def __init__(self, qtest: Qtest) -> None:
        self._qtest = qtest

    def do(self, transition: Transition, index: int) -> Status:
        """Do to the connector with this DRC index what a guest can do; 0.2 ms, to configure a PHB 0.1 s.

        :raises KeyError: the guest has no part in this transition. :raises EOFError: QEMU ended.
        """
        if transition is Transition.CONFIGURE:
            return self._configure(index)
        indicator, value = CELLS[transition]
        [status] = self._qtest.rtas("set-indicator", (indicator, index, value))
        return Status(status)

    def _configure(self, index: int) -> Status:
        self._qtest.write(_WORK_AREA, index, 0)
        for _ in range(_MOST_PARTS):
            # Above 0: another part of the device tree is in the work area.
            [status] = self._qtest.rtas("ibm,configure-connector", (_WORK_AREA, 0))
            if status <= 0:
                return Status(status)
        raise AssertionError(f"ibm,configure-connector of {index:#x} has no end: {_MOST_PARTS} parts of a device tree so far")
