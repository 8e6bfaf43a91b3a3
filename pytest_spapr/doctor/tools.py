"""Programs of this host, and what only some commands need."""

from __future__ import annotations

import os
import shlex
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from typing import Final

from pytest_spapr.builds import store, toolchain
from pytest_spapr.cache import Cache
from pytest_spapr.config import Settings
from pytest_spapr.debian.apt import host_keyring
from pytest_spapr.debian.mirror import find_mirror, require_tools
from pytest_spapr.doctor.check import Check, State, Theme
from pytest_spapr.errors import SpaprError
from pytest_spapr.images import recipe as recipes
from pytest_spapr.images import store as image_store
from pytest_spapr.libvirt import daemon
from pytest_spapr.libvirt import packages as libvirt_packages
from pytest_spapr.nested import emulator
from pytest_spapr.nested.host import IMAGE as NESTED_IMAGE

Which = Callable[[str], str | None]
#: Programs that drive the timeline's pages in tests, and for pictures of them.
BROWSERS: Final = ("chromium", "chromium-headless-shell", "chromium-browser", "google-chrome", "google-chrome-stable")
_FETCHING: Final = "fetching QEMU builds, guest images and toolchains"
#: Program -> Debian's package, and what is not to be had without it.
_PROGRAMS: Final[Mapping[str, tuple[str, str]]] = {
    "ssh": (
        "openssh-client",
        "logging in to a machine that --spapr-keep left; ci/nightly --slot; scripts that exploration hands back",
    ),
    "zstd": ("zstd", "--spapr-modules whose files are called .ko.zst"),
    "gzip": ("gzip", "--spapr-modules whose files are called .ko.gz"),
    "podman": ("podman", "ci/nightly --podman"),
}


def apt(settings: Settings, which: Which = shutil.which) -> Iterator[Check]:
    """Check that packages can be fetched: programs, keys, and where from. The network is not asked. :param which: for tests."""
    try:
        require_tools(which)
    except SpaprError as error:
        yield Check(Theme.TOOLS, "apt", State.LACKING, str(error), needed_for=_FETCHING)
        return
    yield Check(Theme.TOOLS, "apt", State.FINE, "apt-get, apt-config and dpkg-deb", needed_for=_FETCHING)
    yield _said("archive keys", lambda: str(host_keyring()), "sudo apt-get install debian-archive-keyring")
    if settings.offline.value:
        found = f"{settings.offline.label} forbids to fetch anything"
        yield Check(Theme.TOOLS, "mirror", State.LACKING, found, "unset SPAPR_OFFLINE", _FETCHING)
    else:
        mirror = settings.debian_mirror.value
        yield _said("mirror", lambda: find_mirror(mirror), "export SPAPR_DEBIAN_MIRROR=URL")


def programs(which: Which = shutil.which) -> Iterator[Check]:
    """Check the programs that only some commands start. :param which: returns the path of one, for tests."""
    for program, (package, for_what) in _PROGRAMS.items():
        yield _program(program, which(program), f"sudo apt-get install {package}", for_what)


def browser(cache: Cache, which: Which = shutil.which) -> Check:
    """Check for a Chromium: the host's, or that which ``ci/test`` fetched. :param which: for tests."""
    found = next(filter(None, map(which, BROWSERS)), None) or next(map(str, (cache.root / "chromium").glob("*/chromium")), None)
    return _program("chromium", found, "python -m ci.pages.fetch", "tests/browser, ci/pictures")


def compiler(cache: Cache) -> Check:
    """Check what ``spapr qemu build`` compiles with: of the host it takes a shell and coreutils only."""
    for_what = "spapr qemu build"
    try:
        architecture = store.architecture()
    except SpaprError as error:
        return Check(Theme.TOOLS, "compiler", State.LACKING, str(error), needed_for=for_what)
    there = [entry.key for entry in cache.entries(toolchain.KIND) if entry.key.endswith(f"-{architecture}")]
    found = f"toolchains of {', '.join(there)}" if there else "to come with the first build, 73 MB of packages"
    return Check(Theme.TOOLS, "compiler", State.FINE, found, needed_for=for_what)


def libvirt(cache: Cache, installed: Callable[[], object] = libvirt_packages.installed) -> Iterator[Check]:
    """Check for a libvirt, somebody to run it, and room for its sockets' names. :param installed: the host's, for tests."""
    for_what = "tests/hotplug/test_management.py"
    try:
        found = libvirt_packages.find(cache)
        words = None if found is None else f"{found.version} in the cache"
    except SpaprError as error:
        words = None if installed() is None else f"the host's; {error}"
    if words is None and installed() is not None:
        words = "the host's"
    if words is None:
        remedy = "ci/hotplug tests/hotplug/test_management.py"
        yield Check(Theme.TOOLS, "libvirt", State.LACKING, "neither in the cache nor on this host", remedy, for_what)
    else:
        yield Check(Theme.TOOLS, "libvirt", State.FINE, words, needed_for=for_what)
    if daemon.ordinary_user() is None:
        found_user = "root, and no user namespaces: it cannot become anybody else (unshare --user)"
        yield Check(
            Theme.TOOLS, "libvirt's user", State.LACKING, found_user, "sysctl -w user.max_user_namespaces=10000", for_what
        )
    yield _libvirt_sockets(tempfile.gettempdir(), for_what)


def nested_host(cache: Cache) -> Check:
    """Check for what the tests of devices behind an IOMMU run in."""
    for_what, remedy = "tests/hotplug/test_vfio_nested.py", "ci/vfio-nested"
    try:
        machine = emulator.find(cache)
        image = cache.entry(image_store.KIND, recipes.load(NESTED_IMAGE).key) / image_store.MANIFEST
    except SpaprError as error:
        return Check(Theme.TOOLS, "nested host", State.LACKING, str(error), remedy, for_what)
    missing = [what for what, there in ((emulator.PACKAGE, machine), (f"image {NESTED_IMAGE}", image.exists())) if not there]
    if missing:
        found = f"not in the cache: {', '.join(missing)}"
        return Check(Theme.TOOLS, "nested host", State.LACKING, found, remedy, for_what)
    return Check(Theme.TOOLS, "nested host", State.FINE, "emulator and image are in the cache", needed_for=for_what)


def _libvirt_sockets(directory: str, for_what: str) -> Check:
    # What mkdtemp adds to it.
    longest = daemon.LONGEST - len("/spapr-12345678")
    length = len(os.fsencode(directory))
    found = f"{directory} is {length} bytes long, {longest} are allowed"
    state = State.FINE if length <= longest else State.LACKING
    remedy = None if state is State.FINE else "export TMPDIR=/tmp"
    return Check(Theme.TOOLS, "libvirt's socket paths", state, found, remedy, for_what)


def _said(name: str, ask: Callable[[], str], remedy: str) -> Check:
    try:
        return Check(Theme.TOOLS, name, State.FINE, ask(), needed_for=_FETCHING)
    except SpaprError as error:
        return Check(Theme.TOOLS, name, State.LACKING, str(error), remedy, _FETCHING)


def _program(name: str, path: str | None, remedy: str, for_what: str) -> Check:
    if path is None:
        return Check(Theme.TOOLS, name, State.LACKING, "not on PATH", remedy, for_what)
    return Check(Theme.TOOLS, name, State.FINE, shlex.quote(path), needed_for=for_what)
