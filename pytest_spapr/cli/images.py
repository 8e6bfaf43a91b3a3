"""``spapr image``: guest images."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from pytest_spapr.cache import megabytes
from pytest_spapr.cli.run import Areas, Run, tell_removed
from pytest_spapr.errors import ImageError
from pytest_spapr.images import build as images
from pytest_spapr.images import recipe as recipes
from pytest_spapr.images import store
from pytest_spapr.supply import supply_install


def add(areas: Areas, common: argparse.ArgumentParser) -> None:
    """Add the area ``image`` to the command."""
    parser = areas.add_parser("image", help="guest images", description="Guest images.")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    parents = [common]
    build = commands.add_parser(
        "build",
        parents=parents,
        help="build an image and print its directory",
        description="Build a guest image unless it is in the cache, and print its directory. Fetches 60 to 100 MB of packages. One with a "
        "disk is made in a guest, which takes minutes.",
    )
    build.add_argument(
        "name", nargs="?", default=recipes.DEFAULT_IMAGE, help=f"one of {', '.join(recipes.names())} (default: %(default)s)"
    )
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


def _image_build(run: Run) -> None:
    recipe = recipes.load(run.arguments.name)
    install = supply_install(run.cache, run.mirror, run.progress)
    image = images.build(recipe, run.cache, run.mirror, run.progress, again=run.arguments.again, install=install)
    if run.arguments.kernel:
        image = images.with_kernel(image, run.arguments.kernel, run.arguments.modules, run.cache)
    run.progress.done()
    print(image.directory)


def _image_list(run: Run) -> None:
    known = [recipes.load(name) for name in recipes.names()]
    keys = {recipe.key for recipe in known}
    entries = {entry.key: entry for entry in run.cache.entries(store.KIND)}
    for recipe in known:
        if recipe.key not in entries:
            print(f"{recipe.name:<28} not built: spapr image build {recipe.name}  ({recipe.description})")
    for key, entry in entries.items():
        try:
            image = store.open_image(entry.path)
        except ImageError:
            print(f"{key:<28} damaged: spapr image remove {key}")
            continue
        stale = "" if key in keys or "+" in image.name else "  (of an older recipe)"
        kernel = f"Linux {image.kernel_release}, {_pages(image)}"
        print(f"{image.name:<28} {kernel:<52} {megabytes(entry.size):>8}  {entry.path}{stale}")


def _pages(image: store.GuestImage) -> str:
    return f"{image.page_size // 1024} KiB pages" if image.page_size else "page size unknown"


def _image_show(run: Run) -> None:
    image = images.find(run.arguments.name, run.cache)
    if run.arguments.json:
        print(json.dumps({"directory": str(image.directory), **image.manifest}, indent=1))
        return
    print(f"{image.name}: Linux {image.kernel_release}, {_pages(image)}")
    print(f"directory: {image.directory}")
    for name in store.files_of(image.manifest):
        facts = image.manifest["files"][name]
        print(f"  {name:<15} {megabytes(facts['size']):>8}  sha256 {facts['sha256']}")
    parts = image.manifest.get("parts", ())
    if parts:
        print("initramfs:")
    for part in parts:
        print(f"  {part['name']:<15} {megabytes(part['size']):>8}  sha256 {part['sha256']}")
    print(f"modules: {' '.join(image.modules) or 'none'}")
    print("packages:")
    for name, version in image.packages.items():
        print(f"  {name} {version}")


def _image_verify(run: Run) -> None:
    image = store.verify(images.find(run.arguments.name, run.cache).directory)
    print(f"{image.directory}: all files are as they were when it was built")


def _image_remove(run: Run) -> None:
    name = run.arguments.name
    removed = [entry for entry in run.cache.entries(store.KIND) if name in (entry.key, _image_name(entry.path))]
    if not removed:
        raise ImageError(f"no guest image in the cache {run.cache.root} is called {name!r}: see `spapr image list`.")
    for entry in removed:
        run.cache.remove(entry.kind, entry.key)
        tell_removed(entry)


def _image_name(directory: Path) -> str | None:
    try:
        return store.open_image(directory).name
    except ImageError:
        return None
