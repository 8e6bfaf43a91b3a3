"""What is measured, by name, and the arithmetic: medians, spread, ratios within a run."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from statistics import median, quantiles
from typing import Any, Final

from pytest_spapr.hotplug.outcome import Kind


@dataclass(frozen=True, slots=True)
class Measure:
    """Something that is measured. :ivar title: what, in words; of two measures that begin alike the words before the colon are one
    group. :ivar unit: of its values.
    """

    key: str
    title: str
    unit: str = "s"


@dataclass(frozen=True, slots=True)
class Ratio:
    """How many times as much one measure is as another. :ivar above: :ivar below: their keys."""

    key: str
    title: str
    above: str
    below: str


#: How a machine can be started, and how the suite can be run.
_COUNTS: Final = (1, 4, 8)
_MODES: Final = {"clone": "clones", "vof": "boots with VOF", "slof": "boots with SLOF"}
WORKERS: Final = (1, 2)

#: Of each QEMU build, in the table's order.
MEASURES: Final = (
    Measure("slof_running", "cold boot, SLOF: guest up"),
    Measure("slof_ssh", "cold boot, SLOF: first ssh reply"),
    Measure("vof_running", "cold boot, VOF: guest up"),
    Measure("vof_ssh", "cold boot, VOF: first ssh reply"),
    Measure("file_running", "restore from a migration file: guest up"),
    Measure("file_ssh", "restore from a migration file: first ssh reply"),
    Measure("clone_running", "clone: guest up"),
    Measure("clone_ssh", "clone: first ssh reply"),
    Measure("ahead_ssh", "clone prepared ahead: first ssh reply"),
    *(Measure(f"ahead_{kind}", f"clone prepared ahead, during a {kind} test: first ssh reply") for kind in Kind),
    Measure("core_cycle", "core added and removed, three views checked"),
    Measure("core_refused", "core refused: the last online CPU"),
    Measure("dimm_silent", "DIMM refused in silence, decided"),
    Measure("pci_removal", "PCI device removed"),
    Measure("pci_drmgr", "PCI device removed: drmgr's own time"),
    Measure("pci_rest", "PCI device removed: all but drmgr"),
    Measure("reset", "reset, until the guest is up again"),
    *(Measure(f"private_{count}", f"private memory of each of {count}: first ssh reply", "MB") for count in _COUNTS),
    *(Measure(f"used_{count}", f"private memory of each of {count}: core added and removed", "MB") for count in _COUNTS[-1:]),
    Measure(f"suite_first_{WORKERS[-1]}", f"suite, clones, templates made at need: {WORKERS[-1]} workers"),
    *(
        Measure(f"suite_{mode}_{workers}", f"suite, {words}: {workers} worker{'s' if workers > 1 else ''}")
        for mode, words in _MODES.items()
        for workers in WORKERS
    ),
)

RATIOS: Final = (
    Ratio("slof_clone", "cold boot, SLOF / clone: guest up", "slof_running", "clone_running"),
    Ratio("vof_clone", "cold boot, VOF / clone: guest up", "vof_running", "clone_running"),
    Ratio("file_clone", "restore from a migration file / clone: guest up", "file_running", "clone_running"),
    Ratio("slof_clone_ssh", "cold boot, SLOF / clone: first ssh reply", "slof_ssh", "clone_ssh"),
    Ratio("slof_ahead_ssh", "cold boot, SLOF / clone prepared ahead: first ssh reply", "slof_ssh", "ahead_ssh"),
    *(
        Ratio(
            f"suite_{mode}_clone_{workers}",
            f"suite, {_MODES[mode]} / clones: {workers} worker{'s' if workers > 1 else ''}",
            f"suite_{mode}_{workers}",
            f"suite_clone_{workers}",
        )
        for mode in ("vof", "slof")
        for workers in WORKERS
    ),
    Ratio("suite_workers", "suite, clones: 1 worker / 2 workers", "suite_clone_1", "suite_clone_2"),
)

#: Of the plugin itself, whatever the QEMU build.
PLUGIN_MEASURES: Final = (
    Measure("empty_test", "plugin, for each test without a machine", "ms"),
    Measure("plugin_start", "plugin, for each run of pytest", "ms"),
    Measure("collect", "suite, --collect-only"),
)


@dataclass(frozen=True, slots=True)
class Sample:
    """One value. :ivar round: which round of the run it is of, from 0."""

    round: int
    value: float


@dataclass(slots=True)
class Figures:
    """What was measured of one subject.

    :ivar samples: by measure. :ivar missing: why there is nothing of a measure that the subject cannot have, by the measure.
    :ivar notes: facts about the samples that are no figures.
    """

    measures: Sequence[Measure] = MEASURES
    samples: dict[str, list[Sample]] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    notes: dict[str, Any] = field(default_factory=dict)

    def add(self, number: int, values: Iterable[tuple[str, float]]) -> None:
        """Take the values of one round. :raises KeyError: there is no such measure."""
        known = {measure.key for measure in self.measures}
        for key, value in values:
            if key not in known:
                raise KeyError(key)
            self.samples.setdefault(key, []).append(Sample(number, value))

    def median(self, key: str) -> float | None:
        """Return the median of all samples of a measure, None if there is none."""
        values = self._values(key)
        return median(values) if values else None

    def ratio(self, ratio: Ratio) -> float | None:
        """Return the median over the rounds of the ratio within the round: what disturbs a round disturbs both sides."""
        above, below = (self._by_round(key) for key in (ratio.above, ratio.below))
        quotients = [above[number] / below[number] for number in above.keys() & below.keys() if below[number] > 0]
        return median(quotients) if quotients else None

    def summary(self) -> dict[str, Any]:
        """Return everything, for JSON."""
        return {
            "measures": {measure.key: self._summary_of(measure) for measure in self.measures if measure.key in self.samples},
            "ratios": {
                ratio.key: {"what": ratio.title, "value": _rounded(value)}
                for ratio in RATIOS
                if (value := self.ratio(ratio)) is not None
            },
            "missing": self.missing,
            "notes": self.notes,
        }

    def _summary_of(self, measure: Measure) -> dict[str, Any]:
        values = self._values(measure.key)
        low, high = spread(values)
        return {
            "what": measure.title,
            "unit": measure.unit,
            "median": _rounded(median(values)),
            "quartiles": [_rounded(low), _rounded(high)],
            "min": _rounded(min(values)),
            "max": _rounded(max(values)),
            "samples": [[sample.round, _rounded(sample.value)] for sample in self.samples[measure.key]],
        }

    def quartiles(self, key: str) -> tuple[float, float]:
        """Return the first and the third quartile of a measure that has samples."""
        return spread(self._values(key))

    def _values(self, key: str) -> list[float]:
        return [sample.value for sample in self.samples.get(key, ())]

    def _by_round(self, key: str) -> dict[int, float]:
        rounds: dict[int, list[float]] = {}
        for sample in self.samples.get(key, ()):
            rounds.setdefault(sample.round, []).append(sample.value)
        return {number: median(values) for number, values in rounds.items()}


def _rounded(value: float) -> float:
    return round(value, 6)


def spread(values: Sequence[float]) -> tuple[float, float]:
    """Return the first and the third quartile; of a single value, itself."""
    if len(values) < 2:
        return values[0], values[0]
    low, _, high = quantiles(values, n=4, method="inclusive")
    return low, high
