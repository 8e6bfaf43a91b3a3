"""What a run's machines did, counted test by test and told in a few lines.

A test's facts are plain dicts and lists, so that they travel with its report from another process.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from statistics import median
from typing import Any, TypedDict

from pytest_spapr.report.artefacts import Launch

_TIGHTEST = 3
_HOWS = {"ahead": "cloned ahead", "clone": "cloned", "boot": "booted"}


class Facts(TypedDict):
    """What one test's machines did.

    ``starts``: how each machine with a guest was started, and how many seconds the test waited for it. ``whys``: why machines were
    booted that should have been cloned. ``margins``: the waits that used most of their budget, as (what, used seconds, budget seconds).
    """

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
    kept: list[str]


def facts(launches: Sequence[Launch]) -> Facts:
    """Return what is known about the machines of a test."""
    machines = [launch.machine for launch in launches if launch.machine is not None]
    kernels = [f"Linux {launch.image.kernel_release}" for launch in launches if launch.image is not None]
    waits = [(margin.what, margin.used, margin.budget) for launch in launches for margin in launch.timeline.margins]
    return Facts(
        qemu=launches[0].build.version_text if launches else "",
        kernel=kernels[0] if kernels else "",
        accel=launches[0].spec.accelerator if launches else "",
        machines=len(launches),
        starts=[(one.how, one.seconds) for one in launches if one.machine is not None and one.machine.has_guest],
        whys=[one.why for one in launches if one.why is not None],
        outcomes=dict(Counter(str(attempt.outcome) for machine in machines for attempt in machine.attempts)),
        defects=[],
        margins=_tightest(waits),
        artefacts=None,
        kept=[],
    )


class Summary:
    """The sum of all tests' facts."""

    def __init__(self) -> None:
        self._machines = 0
        self._starts: dict[str, list[float]] = {how: [] for how in _HOWS}
        self._whys: Counter[str] = Counter()
        self._named: dict[str, Counter[str]] = {"qemu": Counter(), "kernel": Counter(), "accel": Counter()}
        self._outcomes: Counter[str] = Counter()
        self._defects: Counter[str] = Counter()
        self._margins: list[tuple[str, float, float]] = []
        self._artefacts: list[str] = []
        self.kept: list[str] = []

    def add(self, one: Facts) -> None:
        """Count one test."""
        self._machines += one["machines"]
        for how, seconds in one["starts"]:
            self._starts[how].append(seconds)
        self._whys.update(one["whys"])
        for name, counter in self._named.items():
            if value := str(one[name]):  # type: ignore[literal-required]
                counter[value] += one["machines"]
        self._outcomes.update(one["outcomes"])
        self._defects.update(one["defects"])
        self._margins = _tightest([*self._margins, *((what, used, budget) for what, used, budget in one["margins"])])
        if one["artefacts"]:
            self.add_artefacts(one["artefacts"])
        self.add_kept(one["kept"])

    def add_artefacts(self, directory: str) -> None:
        """Count a test's directory, once."""
        if directory not in self._artefacts:
            self._artefacts.append(directory)

    def add_kept(self, kept: Iterable[str]) -> None:
        """Note machines that were left running, each once."""
        self.kept.extend(text for text in kept if text not in self.kept)

    @property
    def empty(self) -> bool:
        return not (self._machines or self._artefacts or self.kept)

    def lines(self, artefacts: object) -> list[str]:
        """Return the summary.

        :param artefacts: the directory above all tests' artefacts.
        """
        tested = ", ".join(filter(None, (" and ".join(counter) for counter in self._named.values())))
        rows = [("tested", tested or "no test was finished")]
        guests = (f"{len(all_)} {_HOWS[how]} in {median(all_):.2f} s" for how, all_ in self._starts.items() if all_)
        rows.append(("machines", "; ".join([f"{self._machines} started", *guests])))
        rows.extend(("booted, not cloned", f"{count}: {why}") for why, count in self._whys.items())
        rows.append(("attempts", _counts(self._outcomes) or "none"))
        rows.append(("known defects met", _counts(self._defects) or "none"))
        tight = (f"{what}: {used:.1f} of {budget:.0f} s" for what, used, budget in self._margins)
        rows.extend(("tightest waits" if first else "", text) for first, text in zip((True, False, False), tight, strict=False))
        if self._artefacts:
            count = len(self._artefacts)
            rows.append(("artefacts", f"{artefacts} ({count} {'test' if count == 1 else 'tests'})"))
        return [f"{name:<18} {text}" for name, text in rows]


def _tightest(margins: Iterable[tuple[str, float, float]]) -> list[tuple[str, float, float]]:
    """Return the waits that used most of their budget, each kind of wait once."""
    worst: dict[str, tuple[str, float, float]] = {}
    for what, used, budget in sorted(margins, key=_share, reverse=True):
        worst.setdefault(what, (what, used, budget))
    return list(worst.values())[:_TIGHTEST]


def _share(margin: tuple[str, float, float]) -> float:
    return margin[1] / margin[2] if margin[2] else 1.0


def _counts(counter: Counter[str] | dict[str, Any]) -> str:
    return ", ".join(f"{count} {name}" for name, count in sorted(counter.items()))
