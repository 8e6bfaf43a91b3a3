"""Which known defect a violation is, and what histories leave out where it has been met: so that the search goes on behind it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from enum import Enum, auto
from typing import Any, Final

from pytest_spapr.explore.history import Violation
from pytest_spapr.explore.model import BRIDGE, DIMM, PCI_BUS, PHB, place_of
from pytest_spapr.explore.steps import Aside, Command, Move, Step
from pytest_spapr.hotplug.defects import CRASHES, core_defects, first_that_applies
from pytest_spapr.qemu.build import QemuBuild
from pytest_spapr.qemu.process import exit_in_words


class Avoid(Enum):
    """What histories can leave out."""

    NOTHING = auto()
    CORE_REMOVAL = auto()
    TAKEN_FUNCTION = auto()
    SLOT_31 = auto()
    BRIDGE_BELOW_PHB = auto()
    PART_OF_A_DIMM = auto()
    REFUSAL_AFTER_MOVE = auto()
    PHB_AGAIN = auto()
    CARD_IN_A_MOVE = auto()


#: For each known defect what its violations look like, and what to leave out then; the first that fits counts.
_Looks = Callable[[Violation], bool]


def _died_with_a_core_gone(defect: str) -> _Looks:
    def looks(violation: Violation) -> bool:
        added = (one.arguments for one in _commands(violation.steps) if "driver" in one.arguments)
        cores = {one["id"] for one in added if str(one["driver"]).endswith("-spapr-cpu-core")}
        gone = not cores.isdisjoint(device for done in violation.here for device in done.expected.deleted)
        ends = [status for status in CRASHES if exit_in_words(status) in violation.text]
        return violation.ended and gone and any(defect in core_defects(status, (violation.text,)) for status in ends)

    return looks


def _died_of_a_second_function(violation: Violation) -> bool:
    if not (violation.ended and _adds_card(violation) and "addr" in _last(violation)):
        return False
    bus, (slot, function) = _last(violation)["bus"], place_of(_last(violation)["addr"])
    # What QEMU had to take stands in its place by now.
    refused = violation.done[-1].expected.refused
    return refused and function != 0 and (bus, slot, function) in violation.devices.values()


def _misses_slot_31(violation: Violation) -> bool:
    return not violation.ended and _adds_card(violation) and "addr" not in _last(violation) and "slot 31" in violation.text


def _died_of_a_bridge_below_a_phb(violation: Violation) -> bool:
    bridges = [step for step in violation.steps if isinstance(step, Command) and step.arguments.get("driver") == BRIDGE]
    below = any(step.arguments.get("bus") != PCI_BUS for step in bridges)
    return violation.ended and below and violation.steps[-1] == Command("system_reset")


def _died_of_a_part_of_a_dimm(violation: Violation) -> bool:
    # The same assertion fails for whatever is asked for without being there.
    commands = _commands(violation.steps)
    dimms = {one.arguments["id"] for one in commands if one.arguments.get("driver") == DIMM}
    last = _commands(violation.steps[-1:])
    words = "spapr_drc_unplug_request: assertion failed: (drc->dev)"
    return violation.ended and words in violation.text and not dimms.isdisjoint(map(_asked, last))


def _died_of_a_refusal_after_a_move(violation: Violation) -> bool:
    moved = any(isinstance(step, Move) for step in violation.steps)
    return violation.ended and moved and "spapr_memory_unplug_rollback: assertion failed: (ds)" in violation.text


def _died_of_a_phb_that_came_again(violation: Violation) -> bool:
    return violation.ended and _last(violation).get("driver") == PHB and "subregion->container == mr" in violation.text


def _a_queue_is_too_large_there(violation: Violation) -> bool:
    return isinstance(next(reversed(violation.steps), None), Move) and "exceeds allocated max" in violation.text


def _commands(steps: Sequence[Step]) -> list[Command]:
    return [step for one in steps if isinstance(step := one.command if isinstance(one, Aside) else one, Command)]


def _asked(command: Command) -> str | None:
    """Return the id of the device that this is to remove, if it is a removal; one can be named by its path, too."""
    return str(command.arguments["id"]).rpartition("/")[2] if command.name == "device_del" else None


def _last(violation: Violation) -> Mapping[str, Any]:
    step = next(reversed(violation.steps), None)
    return step.arguments if isinstance(step, Command) else {}


def _adds_card(violation: Violation) -> bool:
    step = next(reversed(violation.steps), None)
    return isinstance(step, Command) and step.name == "device_add" and "bus" in step.arguments


_KNOWN: Final[tuple[tuple[str, _Looks, Avoid], ...]] = (
    ("pci-function-taken", _died_of_a_second_function, Avoid.TAKEN_FUNCTION),
    ("pci-slot-31", _misses_slot_31, Avoid.SLOT_31),
    ("dimm-part-refused", _died_of_a_part_of_a_dimm, Avoid.PART_OF_A_DIMM),
    ("dimm-refused-after-migration", _died_of_a_refusal_after_a_move, Avoid.REFUSAL_AFTER_MOVE),
    ("phb-again-too-soon", _died_of_a_phb_that_came_again, Avoid.PHB_AGAIN),
    ("virtio-queue-size", _a_queue_is_too_large_there, Avoid.CARD_IN_A_MOVE),
    ("phb-bridge-reset", _died_of_a_bridge_below_a_phb, Avoid.BRIDGE_BELOW_PHB),
    ("tcg-core-removal", _died_with_a_core_gone("tcg-core-removal"), Avoid.CORE_REMOVAL),
    ("tcg-core-removal-heap", _died_with_a_core_gone("tcg-core-removal-heap"), Avoid.CORE_REMOVAL),
)


def known_defect(
    violation: Violation, build: QemuBuild, accelerator: str, forgotten: Collection[str] = ()
) -> tuple[str, Avoid] | None:
    """Return the id of the known defect that a violation is, and what to leave out from now on; None if it is news.

    :param forgotten: ids of known defects that are to be news, too.
    """
    for name, looks, avoid in _KNOWN:
        if name not in forgotten and looks(violation) and first_that_applies((name,), build, accelerator, None):
            return name, avoid
    return None
