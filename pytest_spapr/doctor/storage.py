"""The cache: whether it can be written, and has room."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from pytest_spapr.builds.source import require_buildable
from pytest_spapr.cache import Cache, megabytes
from pytest_spapr.doctor.check import Check, State, Theme
from pytest_spapr.errors import CacheError
from pytest_spapr.templates.store import KIND as TEMPLATES

#: A packaged QEMU, an image with its packages, and one template.
_NEEDED: Final = 500_000_000
_ELSEWHERE: Final = "export SPAPR_CACHE_DIR=/a/larger/directory/of/yours"


def directory(cache: Cache, templates: int) -> Iterator[Check]:
    """Check the cache's directory. What is written to see whether it can be is removed at once.

    :param templates: bytes that templates may take there.
    """
    root = cache.root
    there = root if root.exists() else next(parent for parent in root.parents if parent.exists())
    try:
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        # One that was made read-only, somebody else's, or no directory.
        found = f"{there} cannot be written: {error.strerror}"
        yield Check(Theme.CACHE, "directory", State.BROKEN, found, "export SPAPR_CACHE_DIR=/a/directory/of/yours")
        return
    yield Check(Theme.CACHE, "directory", State.FINE, str(root) + ("" if root.exists() else ", made when it is needed"))
    yield _space(cache, there, templates)


def buildable(cache: Cache) -> Check:
    """Check that QEMU can be built below the cache's directory."""
    for_what = "spapr qemu build"
    try:
        require_buildable(cache)
    except CacheError as error:
        remedy = "export SPAPR_CACHE_DIR=/a/directory/without/them"
        return Check(Theme.CACHE, "build path", State.LACKING, str(error), remedy, for_what)
    return Check(Theme.CACHE, "build path", State.FINE, "QEMU's configure takes it", needed_for=for_what)


def _space(cache: Cache, there: Path, templates: int) -> Check:
    free = shutil.disk_usage(there).free
    found = f"{megabytes(free)} free"
    if free < _NEEDED:
        return Check(Theme.CACHE, "space", State.BROKEN, f"{found}, expected {megabytes(_NEEDED)} at least", _ELSEWHERE)
    used = sum(entry.size for entry in cache.entries(TEMPLATES))
    if free + used < templates:
        found += f": templates may take {megabytes(templates)}, and have {megabytes(used)}"
        remedy = f"export SPAPR_TEMPLATE_SPACE={(free + used) // 2 // 2**20}M"
        return Check(Theme.CACHE, "space", State.LACKING, found, remedy, "as many templates as --spapr-template-space allows")
    return Check(Theme.CACHE, "space", State.FINE, found)
