"""QEMU builds and guest images: those that a run would take, and all that there are."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from pytest_spapr.builds import packages, store
from pytest_spapr.cache import Cache
from pytest_spapr.config import Setting, Settings, Source
from pytest_spapr.doctor.check import Check, State, Theme
from pytest_spapr.errors import BuildError, ImageError, SpaprError
from pytest_spapr.images import build as images
from pytest_spapr.images import recipe as recipes
from pytest_spapr.images import store as image_store
from pytest_spapr.images.disk import is_disk, open_disk
from pytest_spapr.images.login import Login
from pytest_spapr.images.store import GuestImage
from pytest_spapr.progress import NullProgress
from pytest_spapr.supply import check_machine, check_named, contract_notes, supply_accelerator, supply_build

if TYPE_CHECKING:
    from pytest_spapr.qemu.build import QemuBuild

Supply = Callable[[Settings, Cache, NullProgress], "QemuBuild"]
_OTHERS: Final = 0o077


def named(settings: Settings) -> Check:
    """Check that the files exist that the settings name."""
    try:
        check_named(settings)
    except SpaprError as error:
        return Check(Theme.QEMU, "settings", State.BROKEN, str(error))
    return Check(Theme.QEMU, "settings", State.FINE, "what they name is there")


def build_under_test(settings: Settings, cache: Cache, supply: Supply = supply_build) -> Check:
    """Check the QEMU that a run with these settings takes: it is asked what it can do (0.6 s for one that is new), never booted.

    :param supply: finds it, for tests.
    """
    name = f"under test: {settings.qemu.value or 'the default'}"
    try:
        build = supply(_offline(settings), cache, NullProgress())
        accelerator = supply_accelerator(settings, build)
        check_machine(settings, build)
    except SpaprError as error:
        wanted = settings.qemu.value or packages.DEFAULT_BUILD
        remedy = _install(cache, wanted) if wanted in packages.SOURCES else None
        return Check(Theme.QEMU, name, State.BROKEN, str(error), remedy)
    return Check(Theme.QEMU, name, State.FINE, "; ".join([f"{_words(build)}, {accelerator}", *contract_notes(settings, build)]))


def stored_builds(settings: Settings, cache: Cache, supply: Supply = supply_build) -> Iterator[Check]:
    """Check every QEMU build that is known by name, packaged ones and those built from source. Parameters as of the one under test."""
    for name in dict.fromkeys((*packages.SOURCES, *store.names(cache))):
        for_what = f"--spapr-qemu={name}"
        try:
            if store.find(cache, name) is None:
                yield Check(Theme.QEMU, name, State.LACKING, "not installed", f"spapr qemu install {name}", for_what)
                continue
            build = supply(_offline(replace(settings, qemu=replace(settings.qemu, value=name))), cache, NullProgress())
        except SpaprError as error:
            yield Check(Theme.QEMU, name, State.LACKING, str(error), _install(cache, name), for_what)
            continue
        yield Check(Theme.QEMU, name, State.FINE, _words(build), needed_for=for_what)


def image_under_test(settings: Settings, cache: Cache) -> Iterator[Check]:
    """Check the guest image that a run with these settings takes, and the key that opens its guest."""
    wanted = settings.image.value or recipes.DEFAULT_IMAGE
    name = f"under test: {wanted}"
    if is_disk(wanted):
        # That it is one was checked with the settings.
        disk = open_disk(Path(wanted), Login())
        found = f"a disk of your own, {disk.format}, {disk.size >> 30} GiB; who logs in shows when it is booted"
        yield Check(Theme.IMAGES, name, State.FINE, found)
        return
    try:
        image = images.find(wanted, cache)
    except SpaprError as error:
        remedy = None if "/" in wanted or wanted not in recipes.names() else f"spapr image build {shlex.quote(wanted)}"
        yield Check(Theme.IMAGES, name, State.BROKEN, str(error), remedy)
        return
    yield Check(Theme.IMAGES, name, State.FINE, _image_words(image))
    yield key(image)


def key(image: GuestImage) -> Check:
    """Check that the key that opens an image's guest is its owner's alone: ssh takes no other."""
    path = image.client_key
    name = f"key of {image.name}"
    for_what = "logging in to a machine that --spapr-keep left"
    mode = path.stat().st_mode & 0o777
    if not os.access(path, os.R_OK):
        return Check(Theme.IMAGES, name, State.BROKEN, f"{path} cannot be read", f"sudo chown $USER {shlex.quote(str(path))}")
    if mode & _OTHERS:
        found = f"{path} has the mode {mode:o}, with which ssh takes no key"
        return Check(Theme.IMAGES, name, State.LACKING, found, f"chmod 600 {shlex.quote(str(path))}", for_what)
    return Check(Theme.IMAGES, name, State.FINE, f"mode {mode:o}", needed_for=for_what)


def stored_images(cache: Cache, known: Iterable[str] | None = None) -> Iterator[Check]:
    """Check every image that there is a recipe for. :param known: recipes' names, by default all for pseries machines."""
    for name in known or recipes.names():
        recipe = recipes.load(name)
        if recipe.host:
            continue
        remedy, for_what = f"spapr image build {name}", f"--spapr-image={name}"
        try:
            if not (cache.entry(image_store.KIND, recipe.key) / image_store.MANIFEST).exists():
                yield Check(Theme.IMAGES, name, State.LACKING, "not built", remedy, for_what)
                continue
            image = images.find(name, cache)
        except ImageError as error:
            yield Check(Theme.IMAGES, name, State.LACKING, str(error), f"{remedy} --again", for_what)
            continue
        yield Check(Theme.IMAGES, name, State.FINE, _image_words(image), needed_for=for_what)


def _install(cache: Cache, name: str) -> str | None:
    """Return the command that brings a packaged build, also in place of a damaged one."""
    if name not in packages.SOURCES:
        return f"spapr qemu remove {shlex.quote(name)}"
    install = f"spapr qemu install {name}"
    try:
        return install if store.find(cache, name) is None else None
    except BuildError:
        return f"spapr qemu remove {name} && {install}"


def _words(build: QemuBuild) -> str:
    return f"{build.version_text}, can do {' and '.join(sorted(build.accelerators))}"


def _image_words(image: GuestImage) -> str:
    return f"{image.name}, Linux {image.kernel_release}"


def _offline(settings: Settings) -> Settings:
    """Return the settings of a run that fetches nothing."""
    return replace(settings, offline=Setting(True, Source.COMMAND_LINE, "`spapr doctor`"))
