"""What a check found, and the same for programs."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from enum import StrEnum
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Final

#: Of :func:`as_json`; raised when a reader of the old one would misread the new one. ``schema.json`` describes it.
FORMAT: Final = 1


class Theme(StrEnum):
    """What checks are about, in the order in which they are told."""

    PYTHON = "python"
    HOST = "host"
    CACHE = "cache"
    QEMU = "qemu"
    IMAGES = "images"
    TOOLS = "tools"


class State(StrEnum):
    """How it is.

    ``FINE``: as it should be. ``LACKING``: only that cannot be done which the check names. ``BROKEN``: no test that needs a machine
    can be run, or none can be trusted.
    """

    FINE = "fine"
    LACKING = "lacking"
    BROKEN = "broken"


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at.

    :ivar name: the same in every run and version, e.g. ``qemu 7.2``. :ivar found: what there is, or what is wrong with it, in one line.
    :ivar remedy: the shell command that mends it, where there is one. :ivar needed_for: what cannot be done without it.
    """

    theme: Theme
    name: str
    state: State
    found: str
    remedy: str | None = None
    needed_for: str | None = None


def usable(checks: Iterable[Check]) -> bool:
    """Return whether tests can be run."""
    return all(check.state is not State.BROKEN for check in checks)


def as_json(checks: Iterable[Check]) -> dict[str, Any]:
    """Return what was found for programs: every key is always there, and null where it has nothing to say."""
    checks = list(checks)
    return {
        "format": FORMAT,
        "version": own_version(),
        "usable": usable(checks),
        "checks": [asdict(check) for check in checks],
    }


def own_version() -> str | None:
    """Return the version of this package; None where it is imported from a directory, and not installed."""
    try:
        return version(DISTRIBUTION)
    except PackageNotFoundError:
        return None


#: What this package is called to pip.
DISTRIBUTION: Final = "pytest-spapr"
