"""What exploration takes an unplug to meet."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from pytest_spapr.explore.situation import Held, Moment
from pytest_spapr.hotplug.outcome import Kind

KEPT = "silence: memory of the boot"


def dimm(*lmbs: int, of_boot: bool = True) -> Held:
    device: Any = SimpleNamespace(kind=Kind.DIMM, drcs=lmbs)
    return Held(device, of_boot=of_boot)


@pytest.mark.parametrize(
    ("others", "what"),
    [
        ([], KEPT),
        ([dimm(3)], KEPT),
        ([dimm(6, of_boot=False)], KEPT),
        ([dimm(5, 6)], None),
        ([Held(SimpleNamespace(kind=Kind.CORE, drcs=(9,)), of_boot=True)], KEPT),  # type: ignore[arg-type]
    ],
    ids=["alone", "above another", "below one that came later", "below another", "beside a core"],
)
def test_only_the_highest_memory_of_a_boot_is_never_given_up(others: list[Held], what: str | None) -> None:
    held = dimm(4)
    devices = {"it": held, **{f"other{number}": other for number, other in enumerate(others)}}
    assert Moment(devices, (), paused=False).situation(held) == what


def test_a_dimm_whose_lower_memory_may_go_first_is_in_no_situation() -> None:
    held = dimm(4, 5)
    assert Moment({"it": held}, (), paused=False).situation(held) is None
