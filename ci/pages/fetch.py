"""A Chromium from Debian's packages in the cache, for a machine that has none: fetched and verified by apt, unpacked, run without root."""

from __future__ import annotations

import platform
import subprocess
import sys
from collections.abc import Callable, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Final

from ci.pages.browser import VARIABLE, found
from pytest_spapr import config
from pytest_spapr.builds import store
from pytest_spapr.cache import Cache
from pytest_spapr.debian import prefix
from pytest_spapr.debian.apt import AptState
from pytest_spapr.debian.mirror import mirror_of
from pytest_spapr.errors import BuildError, SpaprError
from pytest_spapr.progress import Progress, progress_for

_KIND: Final = "chromium"
# What a system that is not Debian gets: old enough for its libc.
_SUITE: Final = "bookworm"
_EXCLUDED: Final = (
    *prefix.UNNEEDED,
    "usr/share/perl/*",
    # It draws without a graphics card.
    "usr/lib/*/dri/*",
    "usr/lib/*/libLLVM*",
    "usr/lib/*/libz3*",
    "usr/lib/chromium/libVkLayer*",
)
# The host's own: its loader is the one that runs, and loads no other libc.
_LIBC: Final = ("libc6", "libc-bin", "libgcc-s1", "libstdc++6")
_PROGRAM: Final = """#!/bin/sh
root=$(dirname "$(readlink -f "$0")")/root
libraries=$root/usr/lib/{triplet}
# libpulse finds its own part by its absolute path.
export LD_LIBRARY_PATH=$libraries:$root/lib/{triplet}:$root/usr/lib/chromium:$libraries/pulseaudio
exec "$root/usr/lib/chromium/chromium" "$@"
"""


def fetch(cache: Cache, mirror: Callable[[], str], progress: Progress) -> Path:
    """Return the Chromium in the cache, else from the mirror: 190 MB, a minute; 480 MB unpacked.

    :param mirror: called for the base URL only when there is something to fetch.
    :raises MirrorError: the mirror does not have it. :raises VerificationError: signature or hash mismatch.
    :raises CacheError: disk full. :raises BuildError: no packages are known for this machine's architecture, or it does not start.
    """
    architecture, suite = store.architecture(), _suite()
    # An older script found other libraries.
    entry = (_KIND, f"{suite}-{architecture}-{sha256(_PROGRAM.encode()).hexdigest()[:8]}")
    program = cache.entry(*entry) / "chromium"

    def describe(directory: Path, _versions: Mapping[str, str]) -> None:
        (directory / program.name).write_text(_PROGRAM.format(triplet=store.triplet_of(architecture)), encoding="utf-8")
        (directory / program.name).chmod(0o755)
        _require_start(directory / program.name)

    def make() -> None:
        apt = AptState(cache, mirror(), (suite,), architecture, progress)
        prefix.install(
            apt,
            [_KIND],
            cache,
            entry,
            progress,
            what="Chromium",
            space=700_000_000,
            finish=describe,
            excluded=_EXCLUDED,
            without=_LIBC,
        )

    return prefix.obtain(cache, entry, lambda: program if program.exists() else None, make, progress, what="Chromium")


def _require_start(program: Path) -> None:
    """Raise BuildError where it does not start, as it does where a library is missing."""
    done = subprocess.run([program, "--version"], check=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        raise BuildError(
            f"the Chromium of Debian's packages does not start: {done.stdout.strip()}. Set {VARIABLE} to one that does"
        )


def _suite() -> str:
    """Return this system's suite, whose Chromium fits its libc."""
    release = platform.freedesktop_os_release()
    return release.get("VERSION_CODENAME", _SUITE) if release.get("ID") == "debian" else _SUITE


def main() -> int:
    """Print where a Chromium is: this machine's own, else one in the cache, fetched if need be."""
    if program := found():
        print(program)  # noqa: T201 - what it is for
        return 0
    settings = config.read()

    def mirror() -> str:
        return mirror_of(settings, "a Chromium", f"Set {VARIABLE}, or run ci/test")

    try:
        print(fetch(Cache(settings.cache_dir.value), mirror, progress_for(sys.stderr, 79)))  # noqa: T201
    except SpaprError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
