"""What a run's machines did, counted test by test and told in a few lines.

A test's facts are plain dicts and lists, so that they travel with its report from another process.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import TYPE_CHECKING, TypedDict

from pytest_spapr.coverage import connectors
from pytest_spapr.report.artefacts import Launch

if TYPE_CHECKING:
    from pytest_spapr.coverage.replay import Driven
    from pytest_spapr.hotplug.outcome import Outcome
    from pytest_spapr.hotplug.pseries import PseriesMachine

_TIGHTEST = 3
_HOWS = {"ahead": "cloned ahead", "clone": "cloned", "boot": "booted"}


class Facts(TypedDict):
    """What one test's machines did.

    ``cell``: which of the run's several, else empty. ``starts``: how each machine with a guest was started, and how many seconds the
    test waited for it. ``whys``: why machines were booted that should have been cloned. ``margins``: the waits that used most of their
    budget, as (what, used seconds, budget seconds). ``pages``: of the machines' timelines. ``scripts``: that do again what was done to
    machines. ``unrecorded``: why there is none of others. ``drc``: what connectors went through, where that is watched.
    """

    cell: str
    qemu: str
    kernel: str
    accel: str
    machines: int
    starts: list[tuple[str, float]]
    whys: list[str]
    outcomes: dict[str, int]
    defects: list[str]
    margins: list[tuple[str, float, float]]
    artefacts: str | None
    pages: list[str]
    kept: list[str]
    scripts: list[str]
    unrecorded: list[str]
    drc: Driven


def facts(launches: Sequence[Launch]) -> Facts:
    """Return what is known about the machines of a test."""
    machines = [launch.machine for launch in launches if launch.machine is not None]
    kernels = [launch.image.kernel_text for launch in launches if launch.image is not None]
    waits = [(margin.what, margin.used, margin.budget) for launch in launches for margin in launch.timeline.margins]
    return Facts(
        cell="",
        qemu=launches[0].build.version_text if launches else "",
        kernel=kernels[0] if kernels else "",
        accel=launches[0].spec.accelerator if launches else "",
        machines=len(launches),
        starts=[(one.how, one.seconds) for one in launches if one.machine is not None and one.machine.has_guest],
        whys=[one.why for one in launches if one.why is not None],
        outcomes=dict(Counter(str(outcome) for machine in machines for outcome in _outcomes(machine))),
        defects=[],
        margins=_tightest(waits),
        artefacts=None,
        pages=[],
        kept=[],
        scripts=[],
        unrecorded=[],
        drc=_driven(launches),
    )


def _outcomes(machine: PseriesMachine) -> Iterable[Outcome]:
    """Return what became of each attempt in the end: one that was followed has several verdicts."""
    return {(attempt.device, attempt.began): attempt.outcome for attempt in machine.attempts}.values()


def _driven(launches: Sequence[Launch]) -> Driven:
    found: Driven = {}
    for launch in launches:
        if launch.watched and launch.machine is not None:
            connectors.merge(found, connectors.driven(launch.machine))
    return found


@dataclass(slots=True)
class _Tally:
    """What the tests of a cell did, or those of the whole run."""

    machines: int = 0
    named: dict[str, Counter[str]] = field(default_factory=lambda: {name: Counter() for name in ("qemu", "kernel", "accel")})
    verdicts: Counter[str] = field(default_factory=Counter)
    outcomes: Counter[str] = field(default_factory=Counter)
    defects: Counter[str] = field(default_factory=Counter)

    def add(self, one: Facts) -> None:
        self.machines += one["machines"]
        for name, counter in self.named.items():
            if value := str(one[name]):  # type: ignore[literal-required]
                counter[value] += one["machines"]
        self.outcomes.update(one["outcomes"])
        self.defects.update(one["defects"])

    @property
    def tested(self) -> str:
        words = (" and ".join(counter) for counter in self.named.values())
        return ", ".join(filter(None, words)) or "no test was finished"


class Summary:
    """The sum of all tests' facts; where the run has several cells, of each cell too."""

    def __init__(self) -> None:
        self._all = _Tally()
        self._cells: dict[str, _Tally] = {}
        self._starts: dict[str, list[float]] = {how: [] for how in _HOWS}
        self._whys: Counter[str] = Counter()
        self._margins: list[tuple[str, float, float]] = []
        self._artefacts: list[str] = []
        self._scripts: list[str] = []
        self._unrecorded: Counter[str] = Counter()
        self.kept: list[str] = []
        self.drc: Driven = {}
        self.drc_record = ""
        self.index = ""

    def add(self, one: Facts) -> None:
        """Count one test."""
        self._all.add(one)
        if one["cell"]:
            self._cell(one["cell"]).add(one)
        for how, seconds in one["starts"]:
            self._starts[how].append(seconds)
        self._whys.update(one["whys"])
        self._margins = _tightest([*self._margins, *((what, used, budget) for what, used, budget in one["margins"])])
        if one["artefacts"]:
            self.add_artefacts(one["artefacts"])
        self.add_kept(one["kept"])
        self._scripts.extend(one["scripts"])
        self._unrecorded.update(one["unrecorded"])
        connectors.merge(self.drc, one["drc"])

    def add_verdict(self, cell: str, verdict: str) -> None:
        """Count what pytest says about a test of a cell, e.g. ``passed``; nothing where it has no word for a phase."""
        if verdict:
            self._cell(cell).verdicts[verdict] += 1

    def add_artefacts(self, directory: str) -> None:
        """Count a test's directory, once."""
        if directory not in self._artefacts:
            self._artefacts.append(directory)

    def add_kept(self, kept: Iterable[str]) -> None:
        """Note machines that were left running, each once."""
        self.kept.extend(text for text in kept if text not in self.kept)

    @property
    def empty(self) -> bool:
        return not (self._all.machines or self._cells or self._artefacts or self.kept)

    def lines(self, artefacts: object) -> list[str]:
        """Return the summary.

        :param artefacts: the directory above all tests' artefacts.
        """
        rows = [("tested", self._all.tested)]
        if self._cells:
            rows = [("" if number else "tested", text) for number, text in enumerate(self._cell_lines())]
        guests = (f"{len(all_)} {_HOWS[how]} in {median(all_):.2f} s" for how, all_ in self._starts.items() if all_)
        rows.append(("machines", "; ".join([f"{self._all.machines} started", *guests])))
        rows.extend(("booted, not cloned", f"{count}: {why}") for why, count in self._whys.items())
        rows.append(("attempts", _counts(self._all.outcomes) or "none"))
        rows.append(("known defects met", _counts(self._all.defects) or "none"))
        tight = (f"{what}: {used:.1f} of {budget:.0f} s" for what, used, budget in self._margins)
        rows.extend(("tightest waits" if first else "", text) for first, text in zip((True, False, False), tight, strict=False))
        if self._scripts:
            count = len(self._scripts)
            rows.append(("recorded", f"{count} {'script' if count == 1 else 'scripts, the last of them'}: {self._scripts[-1]}"))
        rows.extend(("not recorded", f"{count}: {why}") for why, count in self._unrecorded.items())
        if self.drc_record:
            rows.append(("connectors", self.drc_record))
        if self.index:
            rows.append(("timelines", self.index))
        if self._artefacts:
            count = len(self._artefacts)
            rows.append(("artefacts", f"{artefacts} ({count} {'test' if count == 1 else 'tests'})"))
        return [f"{name:<18} {text}" for name, text in rows]

    @property
    def tested(self) -> str:
        """What was tested, in words."""
        return self._all.tested

    def _cell(self, cell: str) -> _Tally:
        return self._cells.setdefault(cell, _Tally())

    def _cell_lines(self) -> Iterable[str]:
        """Yield what each cell is and how its tests ended, and what their machines did."""
        for name, tally in self._cells.items():
            yield f"{name}: {tally.tested if tally.machines else 'no machine was started'}"
            parts = (
                _counts(tally.verdicts),
                f"attempts {_counts(tally.outcomes)}" if tally.outcomes else "",
                f"known defects met {_counts(tally.defects)}" if tally.defects else "",
            )
            yield f"  {'; '.join(filter(None, parts)) or 'no test ended'}"


def _tightest(margins: Iterable[tuple[str, float, float]]) -> list[tuple[str, float, float]]:
    """Return the waits that used most of their budget, each kind of wait once."""
    worst: dict[str, tuple[str, float, float]] = {}
    for what, used, budget in sorted(margins, key=_share, reverse=True):
        worst.setdefault(what, (what, used, budget))
    return list(worst.values())[:_TIGHTEST]


def _share(margin: tuple[str, float, float]) -> float:
    return margin[1] / margin[2] if margin[2] else 1.0


def _counts(counter: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in sorted(counter.items()))
