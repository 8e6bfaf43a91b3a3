"""Finds or makes what a run needs: the QEMU build, the accelerator, the guest image.

What the user named and cannot be had is an error. Where nothing was named and a default is not at hand, :class:`Unavailable` says
so. Nothing is downloaded for a run whose user named no part of a machine: an unrelated test run must not fetch a Linux kernel.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_spapr.config import Settings
from pytest_spapr.errors import BuildError, ConfigError, ImageError, MirrorError, SpaprError

if TYPE_CHECKING:
    from pytest_spapr.builds.store import StoredQemu
    from pytest_spapr.cache import Cache
    from pytest_spapr.hotplug.contract import Contract
    from pytest_spapr.images.build import Install
    from pytest_spapr.images.selftests import Selftests
    from pytest_spapr.images.store import GuestImage
    from pytest_spapr.libvirt.packages import Libvirt
    from pytest_spapr.nested.emulator import Emulator
    from pytest_spapr.progress import Progress
    from pytest_spapr.qemu.build import QemuBuild

BINARY = "qemu-system-ppc64"
_PROBES = "probes"


class Unavailable(SpaprError):
    """A default is not at hand; nothing was named, so the tests that need it are skipped."""


def supply_build(settings: Settings, cache: Cache, progress: Progress) -> QemuBuild:
    """Return the QEMU build under test, fetched into the cache if need be, and probed.

    :raises ConfigError: what was named does not exist, or is not in the cache when offline.
    :raises BuildError: it is no usable qemu-system-ppc64. :raises Unavailable: nothing named, and nothing at hand.
    """
    setting = settings.qemu
    if setting.value is None:
        path = shutil.which(BINARY)
        return _local(Path(path), cache, BINARY) if path else _packaged(settings, None, cache, progress)
    if "/" not in setting.value:
        return _named(settings, setting.value, cache, progress)
    binary = Path(setting.value)
    if not binary.exists():
        raise ConfigError(
            f"{setting.label}: there is no such file. Give the path of a {BINARY} binary or a packaged build's name."
        )
    return _local(binary, cache, str(binary))


def _named(settings: Settings, name: str, cache: Cache, progress: Progress) -> QemuBuild:
    """Return the build of this name: a packaged one, one that was built from source, or a command on ``PATH``, in this order."""
    from pytest_spapr.builds import packages, store

    if name in packages.SOURCES:
        return _packaged(settings, name, cache, progress)
    if (build := store.find(cache, name)) is not None:
        return _stored(build, cache)
    path = shutil.which(name)
    if path is None:
        built = [known for known in store.names(cache) if known not in packages.SOURCES]
        raise ConfigError(
            f"{settings.qemu.label}: no packaged build has this name (there are {', '.join(packages.SOURCES)}), none that "
            f"`spapr qemu build` made (there are {', '.join(built) or 'none'}), and no command on PATH. Give one of these "
            f"names or the path of a {BINARY}."
        )
    return _local(Path(path), cache, name)


def _local(binary: Path, cache: Cache, name: str) -> QemuBuild:
    from pytest_spapr.qemu.build import probe

    return probe((str(binary),), {}, binary, cache.root / _PROBES, name)


def _packaged(settings: Settings, name: str | None, cache: Cache, progress: Progress) -> QemuBuild:
    from pytest_spapr.builds import packages, store

    wanted = name or packages.DEFAULT_BUILD
    build = store.find(cache, wanted)
    if build is None:
        mirror = _mirror(
            settings,
            what=f"the QEMU build {wanted}" if name else f"no {BINARY} is on PATH, and the QEMU build {wanted}",
            instead=f"Give --spapr-qemu=PATH, or --spapr-qemu={wanted} to fetch the build",
        )
        build = packages.fetch(wanted, cache, mirror, progress)
    return _stored(build, cache)


def _stored(build: StoredQemu, cache: Cache) -> QemuBuild:
    from pytest_spapr.qemu.build import probe

    return probe(build.command, build.env, build.binary, cache.root / _PROBES, build.name)


def _mirror(settings: Settings, what: str, instead: str) -> str:
    """Return the mirror to fetch ``what`` from, if anything may be fetched at all."""
    from pytest_spapr.debian.mirror import mirror_of, require_online

    if settings.asked:
        return mirror_of(settings, what, instead)
    try:
        require_online(settings, what, instead)
    except ConfigError as error:
        raise Unavailable(str(error)) from None
    raise Unavailable(f"{what} is not in the cache. {instead}.")


def supply_accelerator(settings: Settings, build: QemuBuild) -> str:
    """Return ``kvm`` or ``tcg``.

    :raises ConfigError: the one named is not to be had with this build on this host; QEMU was asked, not ``/dev/kvm``, which says
        nothing about ppc64 guests.
    """
    wanted = settings.accel.value
    if wanted == "auto":
        return "kvm" if "kvm" in build.accelerators else "tcg"
    if wanted not in build.accelerators:
        have = ", ".join(sorted(build.accelerators)) or "none"
        raise ConfigError(
            f"{settings.accel.label}: {wanted.upper()} was asked for, but {build.version_text} says that it can only do {have} here. "
            + ("KVM needs a ppc64 host with the kvm_hv or kvm_pr module; " if wanted == "kvm" else "")
            + "leave the option out to use what there is."
        )
    return wanted


def supply_image(settings: Settings, cache: Cache, progress: Progress) -> GuestImage:
    """Return the guest image, built if it was named and is not in the cache, and with the user's kernel if there is one.

    :raises ConfigError: a file that was named does not exist, or the image is not in the cache when offline.
    :raises ImageError: unknown or broken. :raises Unavailable: nothing named, and the default is not in the cache.
    """
    from pytest_spapr.images.build import resolve, with_kernel
    from pytest_spapr.images.disk import is_disk
    from pytest_spapr.images.recipe import DEFAULT_IMAGE

    if settings.image.value is not None and is_disk(settings.image.value):
        return _own_disk(settings, Path(settings.image.value), cache, progress)
    name = settings.image.value or DEFAULT_IMAGE
    instead = f"Give --spapr-image=DIRECTORY, or --spapr-image={name} to build it"

    def mirror() -> str:
        return _mirror(settings, f"the guest image {name}", instead)

    image = resolve(name, cache, mirror, progress, supply_install(cache, mirror, progress))
    kernel = settings.kernel.value
    return image if kernel is None else with_kernel(image, kernel, settings.modules.value, cache)


def _own_disk(settings: Settings, path: Path, cache: Cache, progress: Progress) -> GuestImage:
    """Return a disk of the user's own, with what a boot shows of it: contracts are chosen by that."""
    from pytest_spapr.images import seed
    from pytest_spapr.images.disk import open_disk
    from pytest_spapr.images.login import given_login
    from pytest_spapr.provision.examine import examine

    if login := given_login(settings):
        disk = open_disk(path, login)
    else:
        ours = seed.obtain(cache)
        disk = open_disk(path, ours.login, host_key=ours.host_key, seed=ours.iso)
    build = supply_build(settings, cache, progress)
    return examine(disk, build, supply_accelerator(settings, build), cache.root / _PROBES, progress)


def supply_install(cache: Cache, mirror: Callable[[], str], progress: Progress) -> Install:
    """Return what makes the disk of an image that has one: in a guest of the default image, on the packaged QEMU build.

    :param mirror: called when something of that must be fetched.
    """

    def install(archive: Path, disk: Path) -> None:
        from pytest_spapr.builds import packages, store
        from pytest_spapr.images.build import build as build_image
        from pytest_spapr.images.recipe import DEFAULT_IMAGE, load
        from pytest_spapr.provision.disk import install as provision

        wanted = packages.DEFAULT_BUILD
        build = store.find(cache, wanted) or packages.fetch(wanted, cache, mirror(), progress)
        provision(archive, disk, _stored(build, cache), build_image(load(DEFAULT_IMAGE), cache, mirror, progress), progress)

    return install


def supply_libvirt(settings: Settings, cache: Cache, progress: Progress) -> Libvirt:
    """Return a libvirt with its QEMU driver: from the cache, fetched into it where anything may be fetched, or the host's own.

    :raises Unavailable: there is none. :raises VerificationError: what was fetched is not what was signed.
    """
    from pytest_spapr.debian.mirror import find_mirror
    from pytest_spapr.libvirt import packages

    try:
        if (found := packages.find(cache)) is not None:
            return found
        if settings.asked and not settings.offline.value:
            return packages.fetch(cache, find_mirror(settings.debian_mirror.value), progress)
        why = "it is not in the cache, and nothing may be fetched for this run"
    except (BuildError, MirrorError) as error:
        why = str(error)
    if (found := packages.installed()) is not None:
        return found
    raise Unavailable(
        f"there is no libvirt with a QEMU driver here: {why}. Install libvirtd, its QEMU driver and virsh (Debian: "
        f"{', '.join(packages.NAMES)}), or name any part of a machine while online."
    )


def supply_nested_host(settings: Settings, cache: Cache, progress: Progress) -> tuple[Emulator, GuestImage]:
    """Return the hardware and the image of the host for nested machines: from the cache, or fetched where anything may be fetched.

    :raises Unavailable: they are not to be had. :raises VerificationError: what was fetched is not what was signed.
    """
    from pytest_spapr.images import build as images
    from pytest_spapr.images.recipe import load
    from pytest_spapr.nested import emulator
    from pytest_spapr.nested.host import IMAGE

    what = "the host of nested machines"

    def mirror() -> str:
        return _mirror(settings, what, "Run ci/vfio-nested")

    try:
        found = emulator.find(cache) or emulator.fetch(cache, mirror(), progress)
        return found, images.build(load(IMAGE), cache, mirror, progress)
    except (BuildError, ConfigError, MirrorError) as error:
        raise Unavailable(f"{what} is not to be had: {error}") from error


def supply_selftests(settings: Settings, cache: Cache, image: GuestImage, progress: Progress) -> Selftests:
    """Return the selftests of the image's kernel: from the cache, or fetched into it where anything may be fetched.

    :raises Unavailable: they are not to be had. :raises VerificationError: what was fetched is not what was signed.
    """
    from pytest_spapr.debian.mirror import find_mirror
    from pytest_spapr.images import selftests

    try:
        if (found := selftests.find(cache, image)) is not None:
            return found
        if settings.asked and not settings.offline.value:
            return selftests.fetch(cache, find_mirror(settings.debian_mirror.value), image, progress)
        why = "they are not in the cache, and nothing may be fetched for this run"
    except (ImageError, MirrorError) as error:
        why = str(error)
    raise Unavailable(f"no selftests of the guest's kernel {image.kernel_release} here: {why}")


def supply_contract(settings: Settings, build: QemuBuild, image: GuestImage) -> Contract:
    """Return what the build promises together with the image's kernel, the user's own rows above the package's.

    :raises ConfigError: the file of rows that was named is not usable.
    """
    from pytest_spapr.hotplug.contract import Contract
    from pytest_spapr.hotplug.rows import read_rows

    path = settings.contract.value
    above = () if path is None else read_rows(path)
    return Contract(build.features, image.kernel_release, qemu=build.version, above=above, rtas_errd=not image.lacks)


def contract_notes(settings: Settings, build: QemuBuild) -> list[str]:
    """Return what a person should know of the contract that a build is held to; nothing where all is as it should be."""
    from pytest_spapr.hotplug.contract import NEWEST
    from pytest_spapr.hotplug.rows import packaged_rows, read_rows

    newest = ".".join(map(str, NEWEST))
    notes = []
    # QEMU's development tree after 11.1 calls itself 11.1.50.
    if build.version >= (*NEWEST, 50):
        notes.append(f"newer than all that the contracts were seen with: held to the one of {newest}, the newest")
    if build.unprobed is not None:
        notes.append(f"held to the contract of its version: {build.unprobed}")
    if settings.contract.value is not None:
        notes.append(f"contract rows of {settings.contract.value} stand above the package's")
        known = {row.subject for row in packaged_rows()}
        # Perhaps a slip of the pen: no test of the suite asks for it.
        new = {row.subject: None for row in read_rows(settings.contract.value) if row.subject not in known}
        notes.extend(f"of {kind} {situation!r} the package has none" for kind, situation in new)
    return notes


def check_recipe(settings: Settings) -> None:
    """Check that there is a recipe for the image that was named, before a QEMU build is fetched for it.

    :raises ImageError: there is none; the message lists those there are.
    """
    from pytest_spapr.images.disk import is_disk

    name = settings.image.value
    if name is not None and "/" not in name and not is_disk(name):
        from pytest_spapr.images.recipe import load

        load(name)


def check_machine(settings: Settings, build: QemuBuild) -> None:
    """Check that the build knows the machine type that was named. :raises ConfigError: it does not."""
    if settings.machine.value is not None:
        from pytest_spapr.qemu.argv import require_machine

        require_machine(build, settings.machine.value, settings.machine.label)


def check_named(settings: Settings) -> None:
    """Check that the files and directories that were named exist, and that contract rows can be read: cheap, for the start of a run.

    :raises ConfigError: naming the first that does not.
    """
    if settings.contract.value is not None:
        from pytest_spapr.hotplug.rows import read_rows

        read_rows(settings.contract.value)
    if settings.vfio_host.value is not None:
        from pytest_spapr.vfio.host import require_passable

        require_passable(settings.vfio_host.value, settings.vfio_host.label)
    _check_disk(settings)
    kernel, modules = settings.kernel, settings.modules
    if kernel.value is not None and not kernel.value.is_file():
        raise ConfigError(f"{kernel.label}: there is no such file. Give the vmlinux of a ppc64 kernel.")
    if modules.value is not None and not modules.value.is_dir():
        raise ConfigError(f"{modules.label}: there is no such directory. Give the INSTALL_MOD_PATH of `make modules_install`.")
    for place, what in ((settings.qemu, f"{BINARY} binary"), (settings.image, "directory of a guest image or a disk")):
        if place.value is not None and "/" in place.value and not Path(place.value).exists():
            raise ConfigError(f"{place.label}: there is no such file or directory. Give the {what}, or a name without a slash.")


def _check_disk(settings: Settings) -> None:
    """Check a disk of the user's own and what stands beside it. :raises ConfigError: it is no disk, or does not take that."""
    from pytest_spapr.images.disk import is_disk, open_disk
    from pytest_spapr.images.login import Login, given_login

    image = settings.image
    if image.value is None or not is_disk(image.value):
        for setting in (settings.ssh_user, settings.ssh_key, settings.ssh_password_file):
            if setting.named:
                raise ConfigError(
                    f"{setting.label} is for a disk of your own: give it with --spapr-image=DISK.qcow2 or DISK.raw."
                )
        return
    for given in (settings.kernel, settings.kernel_args):
        if given.named:
            raise ConfigError(f"{given.label}: {image.label} is a disk, which its own boot loader boots, with its own kernel.")
    if settings.firmware.value == "vof":
        raise ConfigError(f"{settings.firmware.label}: {image.label} is a disk, which only SLOF boots.")
    given_login(settings)
    try:
        open_disk(Path(image.value), Login())
    except ImageError as error:
        raise ConfigError(f"{image.label}: {error}") from error
