"""The bars: what the figures are held against."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from ci.benchmark.figures import RATIOS, Figures

_RATIO: Final = {ratio.key: ratio for ratio in RATIOS}


@dataclass(frozen=True, slots=True)
class Bar:
    """A bound on a median. :ivar key: the measure's or the ratio's. :ivar side: which side of the bound is good."""

    title: str
    key: str
    side: Literal["at most", "at least"]
    bound: float
    unit: str = "s"

    @property
    def is_ratio(self) -> bool:
        """Whether it compares two things within the run: only such a bar may fail a run, whatever the host."""
        return self.key in _RATIO


@dataclass(frozen=True, slots=True)
class Verdict:
    """What came of a bar. :ivar value: None if it was not measured."""

    bar: Bar
    value: float | None

    @property
    def holds(self) -> bool | None:
        """Whether it holds, None if that is not known."""
        if self.value is None:
            return None
        return self.value <= self.bar.bound if self.bar.side == "at most" else self.value >= self.bar.bound


#: Medians on an idle host with two CPUs, under TCG, with QEMU 11.1 and 7.2 and a guest of 1 GiB.
BARS: Final = (
    Bar("a test in a run of alike has its guest, ssh included", "ahead_ssh", "at most", 0.05),
    Bar("clone until it runs", "clone_running", "at most", 0.12),
    Bar("clone until the first ssh reply", "clone_ssh", "at most", 0.40),
    Bar("cold boot with SLOF / clone", "slof_clone", "at least", 60, ""),
    Bar("core added and removed, three views checked", "core_cycle", "at most", 0.8),
    Bar("refused core", "core_refused", "at most", 0.5),
    Bar("silent refusal of a DIMM decided", "dimm_silent", "at most", 0.6),
    Bar("PCI removal beyond drmgr's own time", "pci_rest", "at most", 0.5),
    Bar("private memory of each of 8 clones", "private_8", "at most", 120, "MB"),
    Bar("suite, boots with VOF / clones, 2 workers", "suite_vof_clone_2", "at least", 8, ""),
    Bar("suite, boots with SLOF / clones, 2 workers", "suite_slof_clone_2", "at least", 8, ""),
)

#: Of the plugin itself.
PLUGIN_BARS: Final = (
    Bar("plugin, for each test without a machine", "empty_test", "at most", 1.0, "ms"),
    Bar("suite, --collect-only", "collect", "at most", 1.0),
)


def judge(figures: Figures, bars: tuple[Bar, ...] = BARS) -> list[Verdict]:
    """Return what came of each bar."""
    return [Verdict(bar, figures.ratio(_RATIO[bar.key]) if bar.is_ratio else figures.median(bar.key)) for bar in bars]
