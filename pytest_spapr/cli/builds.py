"""``spapr qemu``: QEMU builds."""

from __future__ import annotations

import argparse

from pytest_spapr.builds import packages
from pytest_spapr.cli.run import Areas, Run


def add(areas: Areas, common: argparse.ArgumentParser) -> None:
    """Add the area ``qemu`` to the command."""
    parser = areas.add_parser("qemu", help="QEMU builds", description="QEMU builds out of Debian's packages.")
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


def _qemu_fetch(run: Run) -> None:
    name = run.arguments.name
    cached = [build for build in packages.cached(run.cache) if build.name == name]
    build = cached[0] if cached else packages.fetch(name, run.cache, run.mirror(), run.progress)
    run.progress.done()
    print(f"{build.name}: {build.package_version} in {build.prefix}")


def _qemu_list(run: Run) -> None:
    cached = {build.name: build for build in packages.cached(run.cache)}
    for name in packages.SOURCES:
        build = cached.get(name)
        state = f"{build.package_version}  {build.prefix}" if build else f"not fetched: spapr qemu fetch {name}"
        print(f"{name:<6} {state}")
