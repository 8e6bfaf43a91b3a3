"""Which Debian mirror to use: the user's setting, else the one that the machine's own apt uses."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from urllib.parse import urlsplit

from pytest_spapr.config import Settings
from pytest_spapr.errors import ConfigError, MirrorError

INSTEAD = (
    "Name a mirror with --spapr-debian-mirror=URL or SPAPR_DEBIAN_MIRROR=URL, or bring your own: --spapr-qemu=PATH for the "
    "QEMU build and --spapr-image=DIRECTORY for the guest image."
)
# apt-get prints one line per index that it would download; tabs do not occur in the values.
_FORMAT = "$(REPO_URI)\t$(RELEASE)\t$(ORIGIN)\t$(LABEL)"


def mirror_of(settings: Settings, what: str, instead: str) -> str:
    """Return the base URL to fetch something from, as a run's settings say.

    :param what: is not in the cache. :param instead: what gets it.
    :raises ConfigError: nothing may be fetched. :raises MirrorError: see :func:`find_mirror`.
    """
    require_online(settings, what, instead)
    return find_mirror(settings.debian_mirror.value)


def require_online(settings: Settings, what: str, instead: str) -> None:
    """Check that something may be fetched, from wherever that is. :raises ConfigError: it may not."""
    if settings.offline.value:
        raise ConfigError(
            f"{what} is not in the cache, and {settings.offline.label} forbids to fetch it. {instead} once, online."
        )


def find_mirror(setting: str | None = None) -> str:
    """Return the base URL of a Debian archive, without a slash at its end.

    :param setting: the user's choice, if any; taken as it is but for its scheme.
    :raises MirrorError: when the setting is no URL, the host has no apt, or its apt uses no Debian archive.
    """
    if setting:
        if urlsplit(setting).scheme not in ("http", "https", "file"):
            raise MirrorError(f"the Debian mirror {setting!r} is not an http:, https: or file: URL of an archive's base.")
        return setting.rstrip("/")
    require_tools()
    # The first form knows each archive's Origin from its signed Release file; the second needs no downloaded lists
    # (container images come without) and leaves only the address to judge by.
    for option, judge in (("--release-info", _says_debian), ("--no-release-info", _looks_debian)):
        for line in _targets(option):
            if judge(*line.split("\t")):
                return line.split("\t")[0].rstrip("/")
    raise MirrorError(f"this machine's apt has no Debian archive among its sources (apt-get indextargets). {INSTEAD}")


def require_tools(which: Callable[[str], str | None] = shutil.which) -> None:
    """Check that this machine has apt and dpkg.

    :param which: returns the path of a program, for tests.
    :raises MirrorError: when not, saying what to give instead.
    """
    for tool in ("apt-get", "apt-config", "dpkg-deb"):
        if which(tool) is None:
            raise MirrorError(
                f"fetching Debian packages needs apt and dpkg, and this machine has no {tool}. A mirror's name does not help "
                "here: give --spapr-qemu=PATH and --spapr-image=DIRECTORY instead."
            )


def _targets(option: str) -> list[str]:
    command = ["apt-get", "indextargets", option, "--format", _FORMAT, "Created-By: Packages"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        raise MirrorError(f"`apt-get indextargets` failed: {result.stderr.strip()} {INSTEAD}")
    return [line for line in result.stdout.splitlines() if line.count("\t") == 3]


def _says_debian(_uri: str, _release: str, origin: str, label: str) -> bool:
    # Backports carry "Debian Backports" and live in the same archive; "Debian-Security" is an archive of its own.
    return origin == "Debian" and label == "Debian"


def _looks_debian(uri: str, _release: str, _origin: str, _label: str) -> bool:
    # ".list": cloud images name their mirrors in a file, mirror+file:/etc/apt/mirrors/debian.list.
    return urlsplit(uri).path.rstrip("/").removesuffix(".list").endswith("/debian")
