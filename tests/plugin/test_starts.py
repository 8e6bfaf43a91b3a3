"""How tests get their machines, as a user sees it in the run's summary, with a starter that has no templates."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pytest_spapr import rig
from pytest_spapr.starts import Started

from . import stubs

_ROOT = Path(__file__).parents[2]
_REASON = "a template needs up to 1073.7 MB in /small, which has less left"


class Without(stubs.StubStarter):
    """Boots each machine, and says why: for machines with many CPUs something else."""

    def start(self, shared: Any, spec: Any, image: Any, timeline: Any, progress: Any) -> Started:
        why = _REASON if spec.max_cpus <= 8 else "a clone of such a machine is unsound: it hangs"
        return self.boot(shared, spec, image, timeline, boot=True, why=why)


@pytest.fixture(autouse=True)
def without(stubbed: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rig, "Starter", Without)


def test_the_summary_has_one_row_for_each_reason(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        import pytest

        @pytest.mark.parametrize("n", range(3))
        def test_one(machine, n): pass

        @pytest.mark.spapr(max_cpus=16)
        def test_other(machine): pass
        """
    )
    result = pytester.runpytest()
    result.assert_outcomes(passed=4)
    rows = [line for line in result.outlines if "not cloned" in line]
    assert rows == [
        f"booted, not cloned 3: {_REASON}",
        "booted, not cloned 1: a clone of such a machine is unsound: it hangs",
    ]


def test_who_asks_for_a_boot_is_told_nothing(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        import pytest

        @pytest.mark.spapr(start="boot")
        def test_one(machine): pass
        """
    )
    result = pytester.runpytest()
    result.assert_outcomes(passed=1)
    result.stdout.no_fnmatch_line("*not cloned*")


def test_workers_rows_are_added_up(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers are processes of their own, and stubs do not reach them: their conftest brings them along."""
    pytest.importorskip("xdist")
    pytester.makeconftest(
        """
        from pytest_spapr import cells, fixtures, rig
        from tests.plugin import stubs, test_starts

        cells.supply_build = lambda settings, cache, progress: stubs.build()
        cells.supply_image = lambda settings, cache, progress: stubs.image()
        rig.Starter = test_starts.Without
        fixtures.harness = stubs.harness
        """
    )
    pytester.makepyfile(
        """
        import pytest

        @pytest.mark.parametrize("n", range(4))
        def test_one(machine, n): pass
        """
    )
    # Before site-packages, where others leave packages called `tests`: avocado's result-html 113 does.
    monkeypatch.setenv("PYTHONPATH", str(_ROOT))
    result = pytester.runpytest_subprocess("-n", "2")
    result.assert_outcomes(passed=4)
    assert [line for line in result.outlines if "not cloned" in line] == [f"booted, not cloned 4: {_REASON}"]
