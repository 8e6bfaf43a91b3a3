"""What the cells of a run are called."""

from __future__ import annotations

import pytest

from pytest_spapr import config
from pytest_spapr.cells import make_cells


def ids(**named: object) -> list[str]:
    return [cell.id for cell in make_cells(config.read_cells(named, environment={}))]


def test_a_single_cell_needs_no_name() -> None:
    assert ids() == ids(qemu=["7.2"], image=["debian-13"]) == [""]


@pytest.mark.parametrize(
    ("qemu", "names"),
    [
        (["7.2", "11.1"], ["7.2", "11.1"]),
        (["7.2", "/src/qemu/build/qemu-system-ppc64"], ["7.2", "build"]),
        (["/src/old/build/qemu-system-ppc64", "/src/new/build/qemu-system-ppc64"], ["old-build", "new-build"]),
        (["/bin/qemu-old", "/bin/qemu-new"], ["qemu-old", "qemu-new"]),
        (["/a/qemu-system-ppc64", "/b/a/qemu-system-ppc64"], ["a", "b-a"]),
        (["7.2", "/builds/7.2"], ["7.2", "builds-7.2"]),
    ],
)
def test_paths_are_told_apart_by_as_much_of_their_ends_as_it_takes(qemu: list[str], names: list[str]) -> None:
    assert ids(qemu=qemu) == [f"{name}-debian-12" for name in names]


def test_what_was_not_named_is_the_default() -> None:
    assert ids(image=["debian-12", "/images/mine"]) == ["default-debian-12", "default-mine"]
