"""The ``spapr`` command: what the plugin needs, by hand. Exit status 0, or 2 with one clear message on stderr."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from pytest_spapr import config
from pytest_spapr.builds import packages
from pytest_spapr.cache import Cache, Entry, megabytes
from pytest_spapr.debian.mirror import find_mirror
from pytest_spapr.errors import CacheError, ConfigError, ImageError, SpaprError
from pytest_spapr.images import build as images
from pytest_spapr.images import recipe as recipes
from pytest_spapr.images import store
from pytest_spapr.progress import Progress, finished, progress_for
from pytest_spapr.templates import store as templates


class _Run:
    """What every command works with: the settings that the user gave, decided as for pytest."""

    def __init__(self, arguments: argparse.Namespace, progress: Progress) -> None:
        self.arguments = arguments
        self.progress = progress
        self.settings = config.read({name: vars(arguments).get(name) for name in ("cache_dir", "debian_mirror", "offline")})
        self.cache = Cache(self.settings.cache_dir.value)

    def mirror(self) -> str:
        if self.settings.offline.value:
            raise ConfigError(f"this needs the network, which {self.settings.offline.label} forbids: do it once without.")
        return find_mirror(self.settings.debian_mirror.value)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status.

    :param argv: without the program's name; by default the process's.
    """
    arguments = _parser().parse_args(argv)
    progress = progress_for(sys.stderr, shutil.get_terminal_size().columns - 1)
    try:
        with finished(progress):
            arguments.run(_Run(arguments, progress))
    except SpaprError as error:
        print(f"spapr: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


def _image_build(run: _Run) -> None:
    recipe = recipes.load(run.arguments.name)
    image = images.build(recipe, run.cache, run.mirror, run.progress, again=run.arguments.again)
    if run.arguments.kernel:
        image = images.with_kernel(image, run.arguments.kernel, run.arguments.modules, run.cache)
    run.progress.done()
    print(image.directory)


def _image_list(run: _Run) -> None:
    keys = {recipes.load(name).key: name for name in recipes.names()}
    entries = {entry.key: entry for entry in run.cache.entries(store.KIND)}
    for key, name in keys.items():
        if key not in entries:
            print(f"{name:<28} not built: spapr image build {name}")
    for key, entry in entries.items():
        try:
            image = store.open_image(entry.path)
        except ImageError:
            print(f"{key:<28} damaged: spapr image remove {key}")
            continue
        stale = "" if key in keys or "+" in image.name else "  (of an older recipe)"
        print(f"{image.name:<28} Linux {image.kernel_release}  {megabytes(entry.size):>9}  {entry.path}{stale}")


def _image_show(run: _Run) -> None:
    image = images.find(run.arguments.name, run.cache)
    if run.arguments.json:
        print(json.dumps({"directory": str(image.directory), **image.manifest}, indent=1))
        return
    pages = f"{image.page_size // 1024} KiB pages" if image.page_size else "page size unknown"
    print(f"{image.name}: Linux {image.kernel_release}, {pages}")
    print(f"directory: {image.directory}")
    for name in store.FILES:
        facts = image.manifest["files"][name]
        print(f"  {name:<15} {megabytes(facts['size']):>8}  sha256 {facts['sha256']}")
    print("initramfs:")
    for part in image.manifest["parts"]:
        print(f"  {part['name']:<15} {megabytes(part['size']):>8}  sha256 {part['sha256']}")
    print(f"modules: {' '.join(image.modules) or 'none'}")
    print("packages:")
    for name, version in image.packages.items():
        print(f"  {name} {version}")


def _image_verify(run: _Run) -> None:
    image = store.verify(images.find(run.arguments.name, run.cache).directory)
    print(f"{image.directory}: all files are as they were when it was built")


def _image_remove(run: _Run) -> None:
    name = run.arguments.name
    removed = [entry for entry in run.cache.entries(store.KIND) if name in (entry.key, _image_name(entry.path))]
    if not removed:
        raise ImageError(f"no guest image in the cache {run.cache.root} is called {name!r}: see `spapr image list`.")
    for entry in removed:
        run.cache.remove(entry.kind, entry.key)
        _tell_removed(entry)


def _image_name(directory: Path) -> str | None:
    try:
        return store.open_image(directory).name
    except ImageError:
        return None


def _qemu_fetch(run: _Run) -> None:
    name = run.arguments.name
    cached = [build for build in packages.cached(run.cache) if build.name == name]
    build = cached[0] if cached else packages.fetch(name, run.cache, run.mirror(), run.progress)
    run.progress.done()
    print(f"{build.name}: {build.package_version} in {build.prefix}")


def _qemu_list(run: _Run) -> None:
    cached = {build.name: build for build in packages.cached(run.cache)}
    for name in packages.SOURCES:
        build = cached.get(name)
        state = f"{build.package_version}  {build.prefix}" if build else f"not fetched: spapr qemu fetch {name}"
        print(f"{name:<6} {state}")


def _template_list(run: _Run) -> None:
    found = templates.listing(run.cache)
    for one in found:
        used = time.strftime("%Y-%m-%d %H:%M", time.localtime(one.used))
        print(f"{one.entry.key}  {megabytes(one.entry.size):>9}  used {used}  {one.state}".rstrip())
        if one.manifest:
            what = "{shape}; {build}; image {image}, Linux {kernel_release}"
            print(f"    {what.format_map(_Unknown(one.manifest))}")
    total = sum(one.entry.size for one in found)
    print(f"{len(found)} in {run.cache.root}: {megabytes(total)} of {megabytes(run.settings.template_space.value)}")


class _Unknown(dict[str, object]):
    """Facts of which some may be missing."""

    def __missing__(self, name: str) -> str:
        return f"unknown {name}"


def _template_remove(run: _Run) -> None:
    entries = {entry.key: entry for entry in run.cache.entries(templates.KIND)}
    if missing := [key for key in run.arguments.keys if key not in entries]:
        raise CacheError(f"no template in the cache {run.cache.root} is called {missing[0]!r}: see `spapr template list`.")
    chosen = list(entries) if run.arguments.all else run.arguments.keys
    kept = [key for key in chosen if not _removed(run, entries[key])]
    if kept:
        raise CacheError(f"in use by a run, and kept: {', '.join(kept)}")


def _removed(run: _Run, entry: Entry) -> bool:
    if not templates.remove(run.cache, entry.key):
        return False
    _tell_removed(entry)
    return True


def _template_gc(run: _Run) -> None:
    given = run.arguments.max_size
    bound = run.settings.template_space.value if given is None else config.parse_size(given, "--max-size: ")
    for entry in templates.trim(run.cache, bound):
        _tell_removed(entry)
    left = run.cache.entries(templates.KIND)
    total = sum(entry.size for entry in left)
    over = ": those in use were kept" if total > bound else ""
    print(f"{len(left)} left, {megabytes(total)} of {megabytes(bound)}{over}")


def _tell_removed(entry: Entry) -> None:
    print(f"removed {entry.path} ({megabytes(entry.size)})")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="spapr",
        description="Makes and keeps what pytest-spapr runs: guest images and QEMU builds, out of Debian's packages, without root; "
        "and keeps the templates of its machines.",
        epilog="The variables SPAPR_CACHE_DIR, SPAPR_DEBIAN_MIRROR and SPAPR_OFFLINE stand for the options of the same name.",
    )
    common = argparse.ArgumentParser(add_help=False)
    group = common.add_argument_group("where from and where to")
    group.add_argument("--cache-dir", metavar="DIR", help="the cache (default: pytest-spapr in the user's cache directory)")
    group.add_argument(
        "--debian-mirror", metavar="URL", help="the mirror to fetch packages from (default: that of this machine's apt)"
    )
    group.add_argument("--offline", action="store_true", default=None, help="fail rather than use the network")
    areas = parser.add_subparsers(title="areas", required=True, metavar="AREA")
    _image_parsers(areas.add_parser("image", help="guest images", description="Guest images."), common)
    _qemu_parsers(areas.add_parser("qemu", help="QEMU builds", description="QEMU builds out of Debian's packages."), common)
    what = "Templates: booted machines at rest on disk, which a test's machines are cloned from. Test runs make them."
    _template_parsers(areas.add_parser("template", help="templates of machines", description=what), common)
    return parser


def _image_parsers(parser: argparse.ArgumentParser, common: argparse.ArgumentParser) -> None:
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    parents = [common]
    build = commands.add_parser(
        "build",
        parents=parents,
        help="build an image and print its directory",
        description="Build a guest image unless it is in the cache, and print its directory. Fetches about 56 MB of packages.",
    )
    build.add_argument("name", nargs="?", default=recipes.DEFAULT_IMAGE, help="the recipe's name (default: %(default)s)")
    build.add_argument(
        "--again", action="store_true", help="build it although it is there, with the newest packages and new keys"
    )
    build.add_argument("--kernel", type=Path, metavar="VMLINUX", help="put this kernel in place of the image's own")
    build.add_argument(
        "--modules", type=Path, metavar="DIR", help="its modules, as `make modules_install INSTALL_MOD_PATH=DIR` made them"
    )
    build.set_defaults(run=_image_build)
    listing = commands.add_parser(
        "list", parents=parents, help="list known and built images", description="List known and built images."
    )
    listing.set_defaults(run=_image_list)
    show = commands.add_parser(
        "show", parents=parents, help="show what an image is made of", description="Show what an image is made of."
    )
    show.add_argument("--json", action="store_true", help="the whole manifest, for programs")
    show.set_defaults(run=_image_show)
    verify = commands.add_parser(
        "verify", parents=parents, help="check an image's hashes", description="Check that no file of an image was changed."
    )
    verify.set_defaults(run=_image_verify)
    remove = commands.add_parser(
        "remove", parents=parents, help="remove images from the cache", description="Remove all images of a name from the cache."
    )
    remove.set_defaults(run=_image_remove)
    for command in (show, verify):
        command.add_argument(
            "name", nargs="?", default=recipes.DEFAULT_IMAGE, help="a name, or a directory with a slash (default: %(default)s)"
        )
    remove.add_argument("name", help="an image's name or a directory's name, as `spapr image list` shows them")


def _qemu_parsers(parser: argparse.ArgumentParser, common: argparse.ArgumentParser) -> None:
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    fetch = commands.add_parser(
        "fetch",
        parents=[common],
        help="fetch a build into the cache",
        description="Fetch a QEMU build of this machine's architecture unless it is in the cache: about 36 MB, half a minute.",
    )
    fetch.add_argument(
        "name",
        nargs="?",
        default=packages.DEFAULT_BUILD,
        help=f"one of {', '.join(packages.SOURCES)} (default: %(default)s)",
    )
    fetch.set_defaults(run=_qemu_fetch)
    listing = commands.add_parser(
        "list", parents=[common], help="list known and fetched builds", description="List known and fetched builds."
    )
    listing.set_defaults(run=_qemu_list)


def _template_parsers(parser: argparse.ArgumentParser, common: argparse.ArgumentParser) -> None:
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    listing = commands.add_parser(
        "list", parents=[common], help="list templates", description="List the templates in the cache, the one used last first."
    )
    listing.set_defaults(run=_template_list)
    remove = commands.add_parser(
        "remove",
        parents=[common],
        help="remove templates from the cache",
        description="Remove templates; a test run makes them anew. Those that a run uses are kept, and the exit status is 2 then.",
    )
    which = remove.add_mutually_exclusive_group(required=True)
    which.add_argument("keys", nargs="*", default=[], metavar="KEY", help="a template as `spapr template list` shows it")
    which.add_argument("--all", action="store_true", help="all templates")
    remove.set_defaults(run=_template_remove)
    collect = commands.add_parser(
        "gc",
        parents=[common],
        help="remove the templates that were not used for longest",
        description="Remove the templates that were not used for longest until the rest fits, and what killed runs left. "
        "Every test run that makes a template does the same.",
    )
    collect.add_argument(
        "--max-size", metavar="SIZE", help="bytes, with a suffix K, M, G or T (default: SPAPR_TEMPLATE_SPACE, else 8G)"
    )
    collect.set_defaults(run=_template_gc)
