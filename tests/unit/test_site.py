"""What of the documentation comes out of the code."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from ci.site import drawings, promises, reference
from pytest_spapr.config import OPTIONS
from pytest_spapr.hotplug.drc_model import MACHINES, DrcClass, State, Transition
from pytest_spapr.hotplug.outcome import Kind
from pytest_spapr.hotplug.rows import packaged_rows

# All that there were from the first generation to the last, and that somebody may have.
RELEASES = [(5, 2), *((major, minor) for major in range(6, 11) for minor in range(3)), (11, 0), (11, 1)]


def test_every_release_does_as_the_generation_that_stands_for_it() -> None:
    for kind, situation in sorted({row.subject for row in packaged_rows()}):
        told = dict(zip(promises.GENERATIONS, promises.told(kind, situation, promises.GENERATIONS), strict=True))
        for release, cell in zip(RELEASES, promises.told(kind, situation, RELEASES), strict=True):
            generation = max(version for version in promises.GENERATIONS if version <= release)
            assert cell == told[generation], f"{kind} {situation!r}: {release} is not as {generation}"


def test_the_tables_tell_silence_refusal_and_what_stays_the_same() -> None:
    page = promises.events()
    assert "| refusal: last online CPU | ~ | = | reverted | refused: `DEVICE_UNPLUG_GUEST_ERROR` | = | = |" in page
    assert page.count("\n## ") == len(Kind)


def test_every_option_fixture_mark_and_command_is_there() -> None:
    assert all(f"`{option.option}" in reference.options() for option in OPTIONS)
    assert "--spapr-accel=tcg\\|kvm\\|auto" in reference.options()
    assert {"## `machine`", "## `contract`", "## `launch_machine`"} <= set(reference.fixture_pages().splitlines())
    assert "spapr_slow" in reference.marks()
    assert "| `max_cpus` | `8` |" in reference.marks()
    assert "## `spapr qemu build`" in reference.command()
    assert "autoclass:: pytest_spapr.PseriesMachine" in reference.interface()


@pytest.mark.parametrize("drc_class", DrcClass)
def test_a_drawing_has_every_state(drc_class: DrcClass) -> None:
    drawing = drawings.connector(drc_class)
    assert all(f">{state}</text>" in drawing for state in MACHINES[drc_class])


def test_a_reset_that_is_not_as_the_text_says_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    core = {state: dict(table) for state, table in MACHINES[DrcClass.CPU].items()}
    core[State.CONFIGURED_PENDING][Transition.RESET] = State.CONFIGURED
    monkeypatch.setattr(drawings, "MACHINES", {DrcClass.CPU: core})
    with pytest.raises(ValueError, match="a reset in configured, pending leads to configured"):
        drawings.connector(DrcClass.CPU)


def package(path: Path, **modules: str) -> Path:
    for part, text in modules.items():
        (path / part).mkdir()
        (path / part / "__init__.py").write_text(text)
    return path


def test_the_house_stands_on_what_it_imports(tmp_path: Path) -> None:
    root = tmp_path / "house"
    root.mkdir()
    only_types = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import house.roof\n"
    package(root, roof="from house import ground, wall", wall="def f():\n    from house.ground import x", ground=only_types)
    drawing = drawings.house(root)
    heights = {part: drawing.index(f">{part}</text>") for part in ("roof", "wall", "ground")}
    assert heights["roof"] < heights["wall"] < heights["ground"]
    # Roof to ground goes by the wall.
    assert drawing.count("marker-end") == 2


def test_a_circle_is_an_error(tmp_path: Path) -> None:
    root = tmp_path / "house"
    root.mkdir()
    with pytest.raises(ValueError, match=r"in a circle: \['roof', 'wall'\]"):
        drawings.house(package(root, roof="import house.wall", wall="import house.roof"))


def test_each_row_of_what_goes_wrong_names_tests_that_are_there() -> None:
    root = Path(__file__).parents[2]
    rows = [
        line for line in (root / "docs/survival.md").read_text().splitlines() if line.startswith("| ") and "Test |" not in line
    ]
    assert len(rows) > 30
    for row in rows:
        named = re.findall(r"`((?:tests|ci)/[^`]+)`", row.rpartition(" | ")[2] if "spapr_slow" not in row else row)
        assert named, row
        assert [name for name in named if not (root / name).is_file()] == []
