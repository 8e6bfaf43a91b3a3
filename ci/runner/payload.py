"""What goes into the runner beside its image: wheels, the image of the guests in it, and how it is to use them."""

from __future__ import annotations

import shlex
import stat
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

from pytest_spapr.images import cpio
from pytest_spapr.images.store import MANIFEST, GuestImage, files_of

#: Where it is in the runner; guest-images/ppc64-runner goes by it.
DIRECTORY: Final = "payload"

_SETTINGS: Final = {
    "SPAPR_QEMU": "/usr/bin/qemu-system-ppc64",
    "SPAPR_IMAGE": f"/{DIRECTORY}/image",
    "SPAPR_CACHE_DIR": "/var/cache/pytest-spapr",
    # There is no network, and what is missing is no reason to pass.
    "SPAPR_OFFLINE": "yes",
    "SPAPR_STRICT": "yes",
}
_SUITE: Final = "pytest_spapr.suite"
_TESTS: Final = "tests/hotplug/"


def tree(wheels: Iterable[Path], guest: GuestImage, tests: Iterable[str]) -> Mapping[str, cpio.Node]:
    """Return the files. :param tests: as :func:`installed_name` returns them; they are imported before the runner is ready."""
    settings = "".join(f"export {name}={shlex.quote(value)}\n" for name, value in _SETTINGS.items())
    found = {
        "settings": cpio.file(settings.encode()),
        "tests": cpio.file("".join(f"{test}\n" for test in tests).encode()),
    }
    found |= {f"wheels/{wheel.name}": cpio.file(wheel.read_bytes()) for wheel in wheels}
    for name in (MANIFEST, *files_of(guest.manifest)):
        path = guest.directory / name
        found[f"image/{name}"] = cpio.file(path.read_bytes(), stat.S_IMODE(path.stat().st_mode))
    return {f"{DIRECTORY}/{name}": node for name, node in found.items()}


def installed_name(test: str) -> str:
    """Return what a test of the suite is called where the package is installed.

    :param test: as pytest takes it here, with the directory or without: ``tests/hotplug/test_cores.py::test_x``.
    """
    file, colons, rest = test.removeprefix(_TESTS).partition("::")
    return f"{_SUITE}.{file.removesuffix('.py')}{colons}{rest}"
