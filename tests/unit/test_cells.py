"""What the cells of a run are called."""

from __future__ import annotations

from pathlib import Path

import pytest

from pytest_spapr import config
from pytest_spapr.cells import make_cells
from pytest_spapr.errors import SpaprError


def ids(**named: object) -> list[str]:
    return [cell.id for cell in make_cells(config.read_cells(named, environment={}))]


def test_another_build_that_is_not_there_is_the_one_that_is_named(tmp_path: Path) -> None:
    (cell,) = make_cells(config.read_cells({"qemu": ["7.2"], "cache_dir": str(tmp_path)}, environment={}))
    with pytest.raises(SpaprError, match=r"^the other build nosuch: no packaged build has this name"):
        cell.other_build("nosuch")


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
