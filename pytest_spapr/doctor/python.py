"""The interpreter and its packages."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib.metadata import PackageNotFoundError, metadata, version
from typing import Final

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from pytest_spapr.doctor.check import DISTRIBUTION, Check, State, Theme

#: The package's extras, and what each is for.
EXTRAS: Final = {
    "explore": "spapr explore",
    "live": "spapr boot, completion, manual",
    "parallel": "pytest -n, which ci/hotplug and ci/test use",
    "nightly": "ci/nightly",
    "docs": "the documentation's site",
    "dev": "ci/test",
}
_INSTALLED: Final = "the package"
Versions = Callable[[str], str]


def interpreter(running: Sequence[int] = sys.version_info[:3], wanted: str | None = None) -> Check:
    """Check the interpreter's version. :param wanted: a specifier, by default the package's own."""
    number = ".".join(map(str, running))
    wanted = wanted or _requires_python()
    if number in SpecifierSet(wanted):
        return Check(Theme.PYTHON, "interpreter", State.FINE, f"Python {number}")
    found = f"Python {number}, expected {wanted}"
    return Check(Theme.PYTHON, "interpreter", State.BROKEN, found, "PYTHON=/path/to/a/newer/python3 ci/setup")


def needed(requirements: Iterable[str] | None = None, installed: Versions = version) -> Check:
    """Check the packages without which nothing works, and their versions, which pip may have changed for another package's sake.

    :param requirements: by default the package's own. :param installed: returns a package's version, for tests.
    """
    try:
        known = _requirements() if requirements is None else list(map(Requirement, requirements))
    except PackageNotFoundError:
        found = f"{DISTRIBUTION} is imported from a directory, and not installed: pytest does not know of the plugin"
        return Check(Theme.PYTHON, _INSTALLED, State.BROKEN, found, _pip("."))
    return _judged(_INSTALLED, _of_extra(known, ""), installed, State.BROKEN, None)


def extras(requirements: Iterable[str] | None = None, installed: Versions = version) -> Iterator[Check]:
    """Check the packages that only some commands need. Parameters as of :func:`needed`."""
    try:
        known = _requirements() if requirements is None else list(map(Requirement, requirements))
    except PackageNotFoundError:
        return
    for extra, purpose in EXTRAS.items():
        yield _judged(f"extra {extra}", _of_extra(known, extra), installed, State.LACKING, purpose)


def _judged(name: str, requirements: Iterable[Requirement], installed: Versions, bad: State, purpose: str | None) -> Check:
    have, lack, wrong = [], [], []
    for requirement in requirements:
        try:
            found = installed(requirement.name)
        except PackageNotFoundError:
            wrong.append(f"{requirement.name} is not installed")
            lack.append(requirement)
            continue
        have.append(f"{requirement.name} {found}")
        if not requirement.specifier.contains(found, prereleases=True):
            wrong.append(f"{requirement.name} is {found}, expected {requirement.specifier}")
            lack.append(requirement)
    if not wrong:
        return Check(Theme.PYTHON, name, State.FINE, ", ".join(have), needed_for=purpose)
    # A marker is of the extra, which pip is not asked for: the package itself may come from anywhere.
    remedy = _pip(*(f"{requirement.name}{requirement.specifier}" for requirement in lack))
    return Check(Theme.PYTHON, name, bad, "; ".join(wrong), remedy, purpose)


def _of_extra(requirements: Iterable[Requirement], extra: str) -> Iterator[Requirement]:
    """Yield the packages that an extra adds, or with "" those that are always needed; extras of extras are told on their own."""
    own = canonicalize_name(DISTRIBUTION)
    for requirement in requirements:
        always = requirement.marker is None or requirement.marker.evaluate({"extra": ""})
        wanted = always if not extra else not always and requirement.marker and requirement.marker.evaluate({"extra": extra})
        if wanted and canonicalize_name(requirement.name) != own:
            yield requirement


def _requirements() -> list[Requirement]:
    return list(map(Requirement, metadata(DISTRIBUTION).get_all("Requires-Dist") or []))


def _requires_python() -> str:
    try:
        return metadata(DISTRIBUTION)["Requires-Python"]
    except (PackageNotFoundError, KeyError):
        return ""


def _pip(*words: str) -> str:
    return shlex.join([sys.executable, "-m", "pip", "install", *words])
