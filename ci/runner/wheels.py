"""Wheels for the runner: this package as its users get it, and what it needs, in the versions that are installed here."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from email import message_from_bytes
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Final

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from pytest_spapr.cache import Cache
from pytest_spapr.config import Settings
from pytest_spapr.debian.mirror import require_online
from pytest_spapr.errors import SpaprError
from pytest_spapr.progress import Progress

ROOT: Final = Path(__file__).resolve().parents[2]
KIND: Final = "wheels"
#: What gets that which is not there.
INSTEAD: Final = "Run ci/ppc64-runner"
#: What the runner's image has from Debian: PyPI has no wheels of the first two for ppc64le.
PROVIDED: Final = frozenset({"bcrypt", "pynacl", "setuptools"})

# What the wheel is made of (pyproject.toml, tool.hatch.build).
_SOURCES: Final = ("pyproject.toml", "README.md", "LICENSE", "pytest_spapr", "tests/hotplug", "guest-images")
# Of the runner: Debian 12.
_PYTHON: Final = "3.11"
_PLATFORMS: Final = ("manylinux_2_17_ppc64le", "manylinux2014_ppc64le", "manylinux_2_28_ppc64le", "manylinux_2_34_ppc64le")
_ENVIRONMENT: Final = {
    "platform_machine": "ppc64le",
    "python_version": _PYTHON,
    "python_full_version": f"{_PYTHON}.2",
    "extra": "",
}
_SECONDS: Final = 600.0


class NoWheels(SpaprError):
    """pip could not make or fetch what the runner needs."""


def own(settings: Settings, cache: Cache, progress: Progress) -> Path:
    """Return this checkout's wheel, made unless there is one of the same files; 10 s.

    :raises NoWheels: it cannot be made. :raises ConfigError: it is not there, and pip may use no network.
    """
    key = f"own-{_digest_of_sources()}"
    # pip fetches what builds it.
    return _obtain(settings, cache, key, ["wheel", str(ROOT)], progress, "building the package's wheel", "this checkout's wheel")[
        0
    ]


def needed(wheel: Path, settings: Settings, cache: Cache, progress: Progress) -> list[Path]:
    """Return the wheels of all that a wheel needs and the runner has not, fetched unless they are there; 13 MB.

    :raises NoWheels: they cannot be had. :raises ConfigError: they are not there, and nothing may be fetched.
    """
    pins = [f"{name}=={version(name)}" for name in sorted(required(requirements_of(wheel)) - PROVIDED)]
    platform = [word for platform in _PLATFORMS for word in ("--platform", platform)]
    command = ["download", "--only-binary=:all:", "--python-version", _PYTHON, *platform, *pins]
    digest = hashlib.sha256("\0".join(command).encode()).hexdigest()[:12]
    phase = "fetching wheels for ppc64le"
    return _obtain(settings, cache, f"needed-{digest}", command, progress, phase, "what the package needs on ppc64le")


def requirements_of(wheel: Path) -> list[str]:
    """Return what a wheel says that it needs."""
    with zipfile.ZipFile(wheel) as archive:
        (metadata,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        return message_from_bytes(archive.read(metadata)).get_all("Requires-Dist") or []


def required(lines: Iterable[str]) -> set[str]:
    """Return what these requirements ask for on the runner, and all that that needs, as it is installed here: canonical names.

    :raises NoWheels: something of it is not installed.
    """
    found: set[str] = set()
    pending = list(_asked(lines))
    while pending:
        one = pending.pop()
        if one not in found:
            found.add(one)
            pending += _asked(_installed_requirements(one))
    return found


def _asked(lines: Iterable[str]) -> Iterator[str]:
    for requirement in map(Requirement, lines):
        if requirement.marker is None or requirement.marker.evaluate(_ENVIRONMENT):
            yield canonicalize_name(requirement.name)


def _installed_requirements(name: str) -> list[str]:
    if name in PROVIDED:
        return []
    try:
        return requires(name) or []
    except PackageNotFoundError as error:
        raise NoWheels(f"{name} is not installed: run ci/setup.") from error


def _obtain(
    settings: Settings, cache: Cache, key: str, command: Sequence[str], progress: Progress, phase: str, what: str
) -> list[Path]:
    """Return the wheels of a cache entry, which a command of pip makes. What pip leaves there is whole when it ends well.

    :param what: what they are, for a person. :raises ConfigError: they are not there, and nothing may be fetched.
    """
    entry = cache.entry(KIND, key)
    with cache.lock(f"{KIND}-{key}", progress):
        if not entry.exists():
            require_online(settings, what, INSTEAD)
            progress.phase(phase)
            with cache.publish(KIND, key) as scratch:
                _pip(command, scratch)
            progress.done()
    return sorted(entry.glob("*.whl"))


def _pip(command: Sequence[str], directory: Path) -> None:
    place = "--wheel-dir" if command[0] == "wheel" else "--dest"
    options = ["--disable-pip-version-check", "--quiet", "--no-deps", place, str(directory)]
    words = [sys.executable, "-m", "pip", command[0], *options, *command[1:]]
    try:
        done = subprocess.run(words, capture_output=True, text=True, errors="replace", timeout=_SECONDS, check=False)
    except subprocess.TimeoutExpired as error:
        raise NoWheels(f"pip {command[0]} did not end within {_SECONDS:g} s.") from error
    if done.returncode or not all(map(zipfile.is_zipfile, directory.glob("*.whl"))):
        said = "\n".join(f"  {line}" for line in done.stderr.strip().splitlines()[-5:])
        raise NoWheels(f"pip {command[0]} failed (exit status {done.returncode}):\n{said}")


def _digest_of_sources() -> str:
    """Return what tells this checkout's wheel from another's."""
    digest = hashlib.sha256()
    for source in _SOURCES:
        path = ROOT / source
        files = sorted(path.rglob("*")) if path.is_dir() else [path]
        for file in files:
            if file.is_file() and "__pycache__" not in file.parts:
                digest.update(f"{file.relative_to(ROOT)}\0".encode() + hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()[:12]
