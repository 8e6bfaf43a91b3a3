"""``spapr qemu``: QEMU builds."""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

from pytest_spapr.builds import packages, source, store
from pytest_spapr.builds.recipe import RECIPES
from pytest_spapr.cache import megabytes, size_of
from pytest_spapr.cli.run import Areas, Run, number_of, tell_removed
from pytest_spapr.errors import BuildError, ConfigError


def add(areas: Areas, common: argparse.ArgumentParser) -> None:
    """Add the area ``qemu`` to the command."""
    what = "QEMU builds: out of Debian's packages, or out of Debian's source with patches. --spapr-qemu=NAME runs tests with one."
    parser = areas.add_parser("qemu", help="QEMU builds", description=what)
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    install = commands.add_parser(
        "install",
        parents=[common],
        help="install packaged builds into the cache",
        description="Fetch packaged QEMU builds for this machine's architecture unless they are in the cache: about 36 MB and "
        "half a minute each.",
    )
    install.add_argument(
        "names",
        nargs="*",
        metavar="NAME",
        default=[packages.DEFAULT_BUILD],
        help=f"of {', '.join(packages.SOURCES)} (default: {packages.DEFAULT_BUILD})",
    )
    install.set_defaults(run=_install)
    _add_build(commands, common)
    listing = commands.add_parser("list", parents=[common], help="list known and stored builds", description="List the builds.")
    listing.set_defaults(run=_list)
    show = commands.add_parser(
        "show",
        parents=[common],
        help="show what a build is made of",
        description="Show a build's command line and what it is made of: packages, or source, patches and configuration.",
    )
    show.add_argument("name", help="a build's name, as `spapr qemu list` shows it")
    show.add_argument("--json", action="store_true", help="the same and all versions, for programs")
    show.set_defaults(run=_show)
    remove = commands.add_parser(
        "remove", parents=[common], help="remove builds from the cache", description="Remove builds from the cache."
    )
    remove.add_argument("names", nargs="*", metavar="NAME", help="builds as `spapr qemu list` shows them")
    remove.add_argument(
        "--trees", action="store_true", help="also toolchains, sources and build trees, which `spapr qemu build` keeps"
    )
    remove.set_defaults(run=_remove)


def _add_build(commands: Areas, common: argparse.ArgumentParser) -> None:
    build = commands.add_parser(
        "build",
        parents=[common],
        help="build QEMU from Debian's source with patches",
        description="Build a minimal qemu-system-ppc64 from Debian's source with patches on top, for --spapr-qemu=NAME. Compiler and "
        "headers come from Debian's packages too. The first build of a source takes about 5 minutes on 2 CPUs; its tree is kept, so that "
        "the next one compiles only what the patches change.",
    )
    build.add_argument("--source", required=True, metavar="SOURCE", help=f"one of {', '.join(RECIPES)}")
    build.add_argument(
        "--patch", action="append", default=[], type=Path, metavar="FILE", help="as for patch -p1; repeatable, in order"
    )
    build.add_argument("--name", required=True, help="what the build is to be called")
    build.add_argument(
        "--jobs", "-j", type=number_of("jobs"), metavar="N", help="compilers at a time (default: one for each CPU)"
    )
    build.set_defaults(run=_build)


def _build(run: Run) -> None:
    jobs = run.arguments.jobs or len(os.sched_getaffinity(0))
    given = run.arguments
    build = source.build(given.source, given.name, given.patch, run.cache, run.mirror, run.progress, jobs=jobs)
    run.progress.done()
    print(f"{build.name}: {build.package_version}{_with_patches(build)} in {build.prefix}")


def _with_patches(build: store.StoredQemu) -> str:
    return f" with {', '.join(build.patches)}" if build.patches else ""


def _install(run: Run) -> None:
    for name in run.arguments.names:
        build = store.find(run.cache, name) if name in packages.SOURCES else None
        build = build or packages.fetch(name, run.cache, run.mirror(), run.progress)
        run.progress.done()
        print(f"{build.name}: {build.package_version} in {build.prefix}")


def _list(run: Run) -> None:
    stored = store.names(run.cache)
    for name in [*packages.SOURCES, *(name for name in stored if name not in packages.SOURCES)]:
        print(f"{name:<12} {_state(run, name)}")
    if kept := source.trees(run.cache):
        print(f"kept for `spapr qemu build`: {megabytes(sum(entry.size for entry in kept))}; spapr qemu remove --trees")


def _state(run: Run, name: str) -> str:
    try:
        build = store.find(run.cache, name)
    except BuildError:
        return f"damaged: spapr qemu remove {name}"
    if build is None:
        return f"not installed: spapr qemu install {name}"
    origin = f"{build.package_version}{', built from source' if 'source' in build.manifest else ''}{_with_patches(build)}"
    return f"{origin}  {megabytes(size_of(build.prefix))}  {build.prefix}"


def _show(run: Run) -> None:
    name = run.arguments.name
    build = store.find(run.cache, name)
    if build is None:
        raise BuildError(f"no QEMU build in the cache {run.cache.root} is called {name!r}: see `spapr qemu list`.")
    if run.arguments.json:
        facts = {"name": name, "command": build.command, "environment": dict(build.env), "binary": str(build.binary)}
        print(json.dumps({**facts, **build.manifest}, indent=1))
        return
    print(f"{name}: Debian's QEMU {build.package_version}, {build.manifest['architecture']}, {megabytes(size_of(build.prefix))}")
    print(f"command: {' '.join(build.command)}")
    print(f"environment: {' '.join(f'{key}={value}' for key, value in build.env.items())}")
    if "source" in build.manifest:
        _show_source(build)
    print("packages:")
    for package, version in build.manifest["packages"].items():
        print(f"  {package} {version}")


def _show_source(build: store.StoredQemu) -> None:
    print("source:")
    for file, digest in build.manifest["source"]["files"].items():
        print(f"  {file}  sha256 {digest}")
    print("patches:" if build.patches else "patches: none")
    for patch in build.manifest["patches"]:
        print(f"  {patch['name']}  sha256 {patch['sha256']}")
    print(f"configured: {' '.join(build.manifest['configure'])}")


def _remove(run: Run) -> None:
    if not run.arguments.names and not run.arguments.trees:
        raise ConfigError("nothing to remove is named: give names as `spapr qemu list` shows them, or --trees.")
    known = store.names(run.cache)
    if missing := [name for name in run.arguments.names if name not in known]:
        raise BuildError(f"no QEMU build in the cache {run.cache.root} is called {missing[0]!r}: see `spapr qemu list`.")
    for name in run.arguments.names:
        store.remove(run.cache, name)
        print(f"removed {name}")
    for entry in source.trees(run.cache) if run.arguments.trees else ():
        source.remove_tree(run.cache, entry, run.progress)
        tell_removed(entry)
