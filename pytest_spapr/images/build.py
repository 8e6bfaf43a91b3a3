"""Builds guest images from recipes, and puts a user's own kernel into one.

An initramfs is three archives after each other: userland and modules, which are the same bytes whenever the packages are, and keys,
which are made anew for each build so that nobody can derive them. No root, no mount, no loop device.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, TypeAlias

from pytest_spapr.cache import Cache, cache_errors
from pytest_spapr.debian.apt import AptState, Package, file_sha256
from pytest_spapr.debian.unpack import Kind, members
from pytest_spapr.errors import ImageError
from pytest_spapr.images import cpio, kernel, keys, rootfs, store, userland
from pytest_spapr.images import recipe as recipes
from pytest_spapr.images.recipe import PSERIES, Recipe
from pytest_spapr.images.store import GuestImage
from pytest_spapr.progress import NullProgress, Progress

_NEEDED_SPACE = 100_000_000
# In Debian's packages, up to 6.x and since then. Whatever its name, the kernel is not compressed.
_KERNELS = ("boot/vmlinu*", "*lib/modules/*/vmlinu*")
_CONFIGS = ("boot/config-*", "*lib/modules/*/config")
_ARCHIVE = "rootfs.tar"

#: Unpacks an archive to a raw disk, which is there with nothing in it, and configures its packages (``provision/``).
Install: TypeAlias = Callable[[Path, Path], None]


def resolve(
    name: str, cache: Cache, mirror: Callable[[], str], progress: Progress | None = None, install: Install | None = None
) -> GuestImage:
    """Return the image that the user named: a directory (has a slash), or a recipe, which is built unless it is in the cache.

    :param mirror: called only when packages are needed. :param install: see :func:`build`.
    :raises ImageError: no such image, or a broken one; and what :func:`build` raises.
    """
    if _is_directory(name):
        return store.open_image(Path(name).absolute())
    recipe = recipes.load(name)
    if recipe.architecture != PSERIES:
        raise ImageError(f"{name} is not for a pseries machine, but for {recipe.architecture}: {recipe.description}")
    if recipe.host:
        raise ImageError(f"{name} is not a guest to be tested: {recipe.description}")
    return build(recipe, cache, mirror, progress, install=install)


def find(name: str, cache: Cache) -> GuestImage:
    """Return the image that the user named as it is: a directory, the recipe's image in the cache, or a cache entry's key.

    :raises ImageError: no such recipe or directory, or not built yet.
    """
    if _is_directory(name):
        return store.open_image(Path(name).absolute())
    if name not in recipes.names() and any(name == entry.key for entry in cache.entries(store.KIND)):
        return store.open_image(cache.entry(store.KIND, name))
    entry = cache.entry(store.KIND, recipes.load(name).key)
    if not cache.has(store.KIND, entry.name, store.MANIFEST):
        raise ImageError(f"the guest image {name} is not in the cache {cache.root}: `spapr image build {name}` makes it.")
    return store.open_image(entry)


def _is_directory(name: str) -> bool:
    return "/" in name or name in (".", "..")


def build(
    recipe: Recipe,
    cache: Cache,
    mirror: Callable[[], str],
    progress: Progress | None = None,
    *,
    again: bool = False,
    install: Install | None = None,
) -> GuestImage:
    """Return the recipe's image, from the cache without any network or else built: 60 to 100 MB to fetch, then about 10 s.

    :param mirror: returns the mirror's base URL; called only when something must be built.
    :param again: build it although it is there, from the mirror's newest packages; it gets new keys.
    :param install: for an image with a disk, which takes minutes more.
    :raises MirrorError: :raises VerificationError: packages cannot be had or are not what they should be.
    :raises ImageError: the recipe does not fit its packages. :raises CacheError: disk full or not writable.
    """
    progress = progress or NullProgress()
    entry = cache.entry(store.KIND, recipe.key)
    if again or not cache.has(store.KIND, recipe.key, store.MANIFEST):
        with cache.lock(f"image-{recipe.key}", progress):
            if again or not cache.has(store.KIND, recipe.key, store.MANIFEST):
                _build(recipe, cache, mirror(), progress, again, install)
    return store.open_image(entry)


def with_kernel(image: GuestImage, vmlinux: Path, modules: Path | None, cache: Cache) -> GuestImage:
    """Return ``image`` with the user's kernel (and its modules) in place of its own, from the cache when nothing changed.

    The keys stay the image's. Without modules the kernel must have built in what the init needs. About a second.

    :param modules: ``.../lib/modules/RELEASE`` or a directory above it.
    :raises ImageError: not a ppc64le vmlinux, no modules for its release there, or an image of the user's own that does not say what it
        is made of.
    """
    try:
        data = vmlinux.read_bytes()
    except OSError as error:
        raise ImageError(f"cannot read the kernel {vmlinux}: {error.strerror}") from error
    release = kernel.release(data, str(vmlinux))
    available = kernel.modules_below(modules, release) if modules else {}
    _require(image, "recipe", "wanted_modules", "spare_modules")
    parts = _parts(image)
    wanted, spare = image.manifest["wanted_modules"], image.manifest["spare_modules"]
    loaded, module_tree = _modules(release, wanted, spare, available)
    parts["modules"] = cpio.archive(module_tree)
    digest = hashlib.sha256(json.dumps(image.manifest["files"], sort_keys=True).encode() + hashlib.sha256(data).digest())
    digest.update(hashlib.sha256(parts["modules"]).digest())
    key = f"{image.name}-{release}-{digest.hexdigest()[:12]}"
    copied = ("recipe", "packages", "wanted_modules", "spare_modules", "console_shell")
    facts = {
        **{name: image.manifest[name] for name in copied},
        "name": f"{image.name}+{release}",
        "kernel_release": release,
        "page_size": None,
        "modules": loaded,
    }
    return _variant(image, cache, key, facts, parts, lambda: data)


def with_files(
    image: GuestImage, name: str, tree: Mapping[str, cpio.Node], cache: Cache, hold: ExitStack | None = None
) -> GuestImage:
    """Return ``image`` with more files in its initramfs, from the cache when nothing changed. The keys stay the image's.

    :param name: what it is called with them. :param hold: :func:`forget` leaves it alone before this is closed.
    :raises CacheError: disk full. :raises ImageError: the image does not say what it is made of.
    """
    parts = {**_parts(image), "files": cpio.archive(tree)}
    digest = hashlib.sha256(json.dumps(image.manifest["files"], sort_keys=True).encode() + parts["files"])
    key = f"{name}-{digest.hexdigest()[:12]}"
    facts = {fact: value for fact, value in image.manifest.items() if fact not in ("format", "parts", "files")}
    return _variant(image, cache, key, {**facts, "name": name}, parts, (image.directory / store.VMLINUX).read_bytes, hold)


def forget(cache: Cache, key: str) -> bool:
    """Remove an image of :func:`with_files`; return False if it is held."""
    with cache.lock(f"image-{key}"):
        return cache.remove_unused(store.KIND, key)


def _variant(
    image: GuestImage,
    cache: Cache,
    key: str,
    facts: Mapping[str, Any],
    parts: Mapping[str, bytes],
    vmlinux: Callable[[], bytes],
    hold: ExitStack | None = None,
) -> GuestImage:
    """Return an image with the keys and the disk of another one, made unless it is there. :param vmlinux: reads its kernel."""
    with cache.lock(f"image-{key}"):
        if not cache.has(store.KIND, key, store.MANIFEST):
            files = {name: (image.directory / name).read_bytes() for name in (store.CLIENT_KEY, store.HOST_KEY)}
            files[store.VMLINUX] = vmlinux()
            cache.require_space(sum(map(len, (*parts.values(), *files.values()))), f"the image {facts['name']}")
            disk = image.disk
            _publish(cache, key, facts, parts, files, None if disk is None else lambda path: _link(disk, path))
        if hold is not None:
            hold.enter_context(cache.using(store.KIND, key))
    return store.open_image(cache.entry(store.KIND, key))


def _build(recipe: Recipe, cache: Cache, mirror: str, progress: Progress, again: bool, install: Install | None) -> None:
    if recipe.disk is not None and install is None:
        raise ImageError(
            f"the guest image {recipe.name} has a disk, which is made in a guest: `spapr image build {recipe.name}` does it."
        )

    def fetch(suites: Sequence[str], names: Sequence[str], wanted: Sequence[str]) -> dict[Package, Path]:
        return _fetch(AptState(cache, mirror, suites, recipe.architecture, progress), cache, names, wanted, again)

    kernel_debs = fetch(recipe.kernel_suites, [recipe.kernel_package], recipe.kernel_files)
    debs = fetch(recipe.suites, recipe.packages, ["*"] if recipe.dependencies else recipe.packages)
    disk_debs = fetch(recipe.suites, recipe.disk.packages, ["*"]) if recipe.disk else {}
    progress.phase(f"building guest image {recipe.name}")
    vmlinux, config, available = _read_kernel(list(kernel_debs.values()))
    where = f"the kernel of {recipe.name}"
    release = kernel.x86_release(vmlinux, where) if recipe.architecture == "amd64" else kernel.release(vmlinux, where)
    loaded, module_tree = _modules(release, recipe.modules, recipe.spare_modules, available, recipe.architecture)
    tree = userland.tree(recipe, list(debs.values()))
    fresh = keys.generate()
    parts = {
        "userland": cpio.archive(tree),
        "modules": cpio.archive(module_tree),
        "keys": cpio.archive(_key_tree(fresh, openssh=recipe.disk is not None)),
    }
    facts: dict[str, Any] = {
        "name": recipe.name,
        "recipe": recipe.digest,
        "kernel_release": release,
        "page_size": kernel.page_size(config),
        "packages": {
            package.name: package.version
            for package in sorted((*kernel_debs, *debs, *disk_debs), key=lambda package: package.name)
        },
        "modules": loaded,
        "wanted_modules": list(recipe.modules),
        "spare_modules": list(recipe.spare_modules),
        "console_shell": recipe.console_shell,
    }
    files = {
        store.VMLINUX: vmlinux,
        store.CLIENT_KEY: fresh.client_private,
        store.HOST_KEY: f"{fresh.host_public}\n".encode(),
    }
    cache.require_space(_NEEDED_SPACE + (recipe.disk.size if recipe.disk else 0), f"the guest image {recipe.name}")

    def make_disk(path: Path) -> None:
        assert recipe.disk is not None
        assert install is not None
        archive = path.with_name(_ARCHIVE)
        own = {file.path: cpio.file(file.source.read_bytes(), file.mode) for file in recipe.disk.files}
        # The init loads what that file lists; systemd would do it again.
        own |= {path: node for path, node in module_tree.items() if path.startswith("lib/")}
        rootfs.write(archive, list(disk_debs.values()), recipe.disk.excluded, own, recipe.architecture, progress)
        with path.open("wb") as stream:
            stream.truncate(recipe.disk.size)
        install(archive, path)
        archive.unlink()

    _publish(cache, recipe.key, facts, parts, files, make_disk if recipe.disk else None)
    progress.done()


def _link(disk: Path, path: Path) -> None:
    """Have the disk of another image, which is never written, here as well."""
    try:
        os.link(disk, path)
    except OSError as error:
        if error.errno not in (errno.EXDEV, errno.EPERM, errno.EMLINK):
            raise
        shutil.copyfile(disk, path)


def _fetch(apt: AptState, cache: Cache, names: Sequence[str], wanted: Sequence[str], newest: bool) -> dict[Package, Path]:
    """Return those of ``names`` and of what they depend on that match one of the globs ``wanted``."""
    with cache.lock(apt.name):
        return apt.fetch(names, lambda package: any(fnmatch(package.name, pattern) for pattern in wanted), newest=newest)


def _read_kernel(debs: list[Path]) -> tuple[bytes, bytes | None, Mapping[str, Callable[[], bytes]]]:
    """Return vmlinux, its .config and readers of all modules."""
    vmlinux: bytes | None = None
    config: bytes | None = None
    modules: dict[str, Callable[[], bytes]] = {}

    def wanted(path: str) -> bool:
        return _is_one(path, _KERNELS + _CONFIGS) or kernel.module_name(path) is not None

    for deb in debs:
        for member in members(deb, wanted):
            name = kernel.module_name(member.path)
            if member.kind is not Kind.FILE:
                continue
            if name is not None:
                modules[name] = _packed(member.data, member.path)
            elif _is_one(member.path, _CONFIGS):
                config = member.data
            else:
                vmlinux = member.data
    if vmlinux is None:
        raise ImageError(f"no kernel is in {', '.join(deb.name for deb in debs) or 'the packages: kernel_files matches none'}")
    return vmlinux, config, modules


def _is_one(path: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch(path, pattern) for pattern in patterns)


def _packed(data: bytes, path: str) -> Callable[[], bytes]:
    return lambda: kernel.unpacked(data, path)


def _modules(
    release: str,
    wanted: Iterable[str],
    spare: Iterable[str],
    available: Mapping[str, Callable[[], bytes]],
    architecture: str = PSERIES,
) -> tuple[list[str], dict[str, cpio.Node]]:
    """Return the modules that the init loads, and a tree with all where modprobe looks for them, and with the init's list."""
    loaded = kernel.select_modules(wanted, available, architecture)
    carried = loaded | kernel.select_modules(spare, available, architecture)
    directory = f"lib/modules/{release}"
    tree = {f"{directory}/{name}.ko": cpio.file(module.data) for name, module in carried.items()}
    tree[f"{directory}/modules.dep"] = cpio.file(kernel.modules_dep(carried).encode())
    tree["etc/modules"] = cpio.file("".join(f"/{directory}/{name}.ko\n" for name in loaded).encode())
    return list(loaded), tree


def _key_tree(fresh: keys.Keys, *, openssh: bool) -> dict[str, cpio.Node]:
    """Return the keys where the guest's ssh server looks for them."""
    if openssh:
        host = {"etc/ssh": cpio.directory(), "etc/ssh/ssh_host_ed25519_key": cpio.file(fresh.host_openssh, 0o600)}
    else:
        host = {
            "etc/dropbear": cpio.directory(0o700),
            "etc/dropbear/dropbear_ed25519_host_key": cpio.file(fresh.host_private, 0o600),
        }
    return {
        **host,
        "root": cpio.directory(0o700),
        "root/.ssh": cpio.directory(0o700),
        "root/.ssh/authorized_keys": cpio.file(f"{fresh.client_public}\n".encode(), 0o600),
    }


def _require(image: GuestImage, *facts: str) -> None:
    missing = [fact for fact in facts if fact not in image.manifest]
    if missing:
        raise ImageError(
            f"{image.directory / store.MANIFEST} does not say what the image is made of ({', '.join(missing)}), so that nothing can be "
            "added to it: neither --spapr-kernel nor tools for its guest. docs/images.md tells what has to be there."
        )


def _parts(image: GuestImage) -> dict[str, bytes]:
    _require(image, "parts")
    data = image.initramfs.read_bytes()
    parts: dict[str, bytes] = {}
    for part in image.manifest["parts"]:
        parts[part["name"]], data = data[: part["size"]], data[part["size"] :]
    return parts


def _publish(
    cache: Cache,
    key: str,
    facts: Mapping[str, Any],
    parts: Mapping[str, bytes],
    files: Mapping[str, bytes],
    make_disk: Callable[[Path], None] | None = None,
) -> None:
    whole = {**files, store.INITRAMFS: b"".join(parts.values())}
    manifest: dict[str, Any] = {
        "format": store.FORMAT,
        **facts,
        "parts": [{"name": name, **_facts(data)} for name, data in parts.items()],
        "files": {name: _facts(whole[name]) for name in store.FILES},
    }
    with cache.publish(store.KIND, key) as scratch, cache_errors(scratch):
        for name, data in whole.items():
            (scratch / name).touch(mode=0o600 if name == store.CLIENT_KEY else 0o644)
            (scratch / name).write_bytes(data)
        if make_disk is not None:
            disk = scratch / store.DISK
            make_disk(disk)
            manifest["files"][store.DISK] = {"size": disk.stat().st_size, "sha256": file_sha256(disk)}
        (scratch / store.MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")


def _facts(data: bytes) -> dict[str, Any]:
    return {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
