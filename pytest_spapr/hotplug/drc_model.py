"""The state machines of QEMU's connectors (hw/ppc/spapr_drc.c of QEMU 5.2 to 11.1).

A connector has a state, a device or none, and a device that QEMU waits for or not; these three are one state here.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from enum import StrEnum
from types import MappingProxyType
from typing import Final, TypeAlias


class DrcClass(StrEnum):
    """What a connector is for."""

    CPU = "CPU"
    LMB = "LMB"
    PCI = "PCI"
    PHB = "PHB"
    PMEM = "PMEM"


class State(StrEnum):
    """Of a connector. ``EMPTY`` has no device, ``..._PENDING`` one that QEMU waits for.

    Physical connectors call the state of a device that the guest has not touched yet power-on, logical ones unusable.
    """

    EMPTY = "empty"
    UNUSABLE = "unusable"
    POWER_ON = "power-on"
    AVAILABLE = "available"
    AVAILABLE_PENDING = "available, pending"
    UNISOLATED = "unisolated"
    UNISOLATED_PENDING = "unisolated, pending"
    CONFIGURED = "configured"
    CONFIGURED_PENDING = "configured, pending"


class Transition(StrEnum):
    """What happens to a connector: by QEMU (attach, unplug, reset, which CAS does too), else by the guest."""

    ATTACH = "attach"
    UNPLUG = "unplug"
    SET_USABLE = "set usable"
    SET_UNUSABLE = "set unusable"
    UNISOLATE = "unisolate"
    ISOLATE = "isolate"
    CONFIGURE = "configure"
    RESET = "reset"


#: For each state what can happen in it, and the state after that; the same one where QEMU refuses or has nothing to do.
Machine: TypeAlias = Mapping[State, Mapping[Transition, State]]

#: The state of a device that QEMU waits for, by that of one that it does not, and the other way round.
PENDING: Final = MappingProxyType(
    {
        State.AVAILABLE: State.AVAILABLE_PENDING,
        State.UNISOLATED: State.UNISOLATED_PENDING,
        State.CONFIGURED: State.CONFIGURED_PENDING,
    }
)
NOT_PENDING: Final = MappingProxyType({pending: state for state, pending in PENDING.items()})
_GUESTS_LOGICAL: Final = (Transition.SET_USABLE, Transition.SET_UNUSABLE, Transition.UNISOLATE, Transition.ISOLATE)
_GUESTS_PHYSICAL: Final = (Transition.UNISOLATE, Transition.ISOLATE)


def _machine(guests: tuple[Transition, ...], moves: Mapping[tuple[State, Transition], State]) -> Machine:
    """Return the machine that the moves make, with all that a guest may do and that moves nothing."""
    made: dict[State, dict[Transition, State]] = {}
    for (state, transition), after in moves.items():
        made.setdefault(state, dict.fromkeys(guests, state))[transition] = after
    return MappingProxyType({state: MappingProxyType(table) for state, table in made.items()})


_T, _S = Transition, State
_COMMON: Final = {
    (_S.UNISOLATED, _T.UNPLUG): _S.UNISOLATED_PENDING,
    (_S.UNISOLATED, _T.CONFIGURE): _S.CONFIGURED,
    (_S.UNISOLATED, _T.RESET): _S.CONFIGURED,
    (_S.UNISOLATED_PENDING, _T.CONFIGURE): _S.CONFIGURED_PENDING,
    (_S.UNISOLATED_PENDING, _T.RESET): _S.EMPTY,
    (_S.CONFIGURED, _T.UNPLUG): _S.CONFIGURED_PENDING,
    (_S.CONFIGURED, _T.CONFIGURE): _S.CONFIGURED,
    (_S.CONFIGURED, _T.RESET): _S.CONFIGURED,
    (_S.CONFIGURED_PENDING, _T.CONFIGURE): _S.CONFIGURED_PENDING,
    (_S.CONFIGURED_PENDING, _T.RESET): _S.EMPTY,
}
_LOGICAL: Final = {
    (_S.EMPTY, _T.ATTACH): _S.UNUSABLE,
    # drc->state is the empty one: released at once, nobody is asked.
    (_S.UNUSABLE, _T.UNPLUG): _S.EMPTY,
    (_S.UNUSABLE, _T.SET_USABLE): _S.AVAILABLE,
    (_S.UNUSABLE, _T.RESET): _S.CONFIGURED,
    (_S.AVAILABLE, _T.UNPLUG): _S.AVAILABLE_PENDING,
    (_S.AVAILABLE, _T.SET_UNUSABLE): _S.UNUSABLE,
    (_S.AVAILABLE, _T.UNISOLATE): _S.UNISOLATED,
    (_S.AVAILABLE, _T.RESET): _S.CONFIGURED,
    (_S.AVAILABLE_PENDING, _T.SET_UNUSABLE): _S.EMPTY,
    (_S.AVAILABLE_PENDING, _T.UNISOLATE): _S.UNISOLATED_PENDING,
    (_S.AVAILABLE_PENDING, _T.RESET): _S.EMPTY,
    (_S.CONFIGURED, _T.ISOLATE): _S.AVAILABLE,
    (_S.CONFIGURED_PENDING, _T.ISOLATE): _S.AVAILABLE_PENDING,
    # A refusal: 87758fed7a.
    (_S.UNISOLATED_PENDING, _T.UNISOLATE): _S.UNISOLATED,
    (_S.CONFIGURED_PENDING, _T.UNISOLATE): _S.CONFIGURED,
    **_COMMON,
}
_LMB: Final = _LOGICAL | {
    # An LMB that nobody asked for cannot be isolated.
    (_S.CONFIGURED, _T.ISOLATE): _S.CONFIGURED,
    # Once more what is pending: QEMU forgets in a migration which DIMMs are (pending_dimm_unplugs), their LMBs do not.
    **{(pending, _T.UNPLUG): pending for pending in NOT_PENDING},
    # Configured again is a refusal too: fe1831eff8.
    (_S.UNISOLATED_PENDING, _T.CONFIGURE): _S.CONFIGURED,
    (_S.CONFIGURED_PENDING, _T.CONFIGURE): _S.CONFIGURED,
}
_PHYSICAL: Final = {
    (_S.EMPTY, _T.ATTACH): _S.POWER_ON,
    (_S.POWER_ON, _T.UNPLUG): _S.EMPTY,
    (_S.POWER_ON, _T.UNISOLATE): _S.UNISOLATED,
    (_S.POWER_ON, _T.RESET): _S.CONFIGURED,
    (_S.CONFIGURED, _T.ISOLATE): _S.POWER_ON,
    (_S.CONFIGURED_PENDING, _T.ISOLATE): _S.EMPTY,
    **_COMMON,
}
# spapr_drc_pmem_class_init: no release. An NVDIMM's device_del gets an error before its connector is touched.
_NEVER_GOES: Final[dict[tuple[State, Transition], State]] = {
    (state, transition): after
    for (state, transition), after in _LOGICAL.items()
    if transition is not _T.UNPLUG and state not in NOT_PENDING
}

#: What is known of each class.
MACHINES: Final[Mapping[DrcClass, Machine]] = MappingProxyType(
    {
        DrcClass.CPU: _machine(_GUESTS_LOGICAL, _LOGICAL),
        DrcClass.LMB: _machine(_GUESTS_LOGICAL, _LMB),
        DrcClass.PCI: _machine(_GUESTS_PHYSICAL, _PHYSICAL),
        DrcClass.PHB: _machine(_GUESTS_LOGICAL, _LOGICAL),
        DrcClass.PMEM: _machine(_GUESTS_LOGICAL, _NEVER_GOES),
    }
)


def after(drc_class: DrcClass, state: State, transition: Transition, features: Collection[str]) -> State | None:
    """Return the state that a connector is in after it; None for what nobody knows to be possible.

    :param features: of the build, as ``QemuBuild.features``: a refusal that it does not hear leaves the device pending.
    """
    becomes = MACHINES[drc_class].get(state, {}).get(transition)
    if becomes is not None and is_refusal(state, becomes) and _hearing(drc_class, transition) not in features:
        return PENDING[becomes]
    return becomes


def is_refusal(before: State, becomes: State) -> bool:
    """Return whether the guest keeps, by this, what QEMU waits for."""
    return before in NOT_PENDING and becomes in PENDING


def _hearing(drc_class: DrcClass, transition: Transition) -> str:
    if transition is Transition.CONFIGURE:
        return "dimm-reconfigure-heard"
    return "dimm-refusal-heard" if drc_class is DrcClass.LMB else "core-refusal-heard"


# hw/ppc/spapr_drc.h: the four highest bits of an index.
_CLASSES: Final = {0x1: DrcClass.CPU, 0x2: DrcClass.PHB, 0x4: DrcClass.PCI, 0x8: DrcClass.LMB, 0x9: DrcClass.PMEM}


def class_of(index: int) -> DrcClass | None:
    """Return the class of the connector with this DRC index; None for one that is not known, as virtual IO."""
    return _CLASSES.get(index >> 28)
