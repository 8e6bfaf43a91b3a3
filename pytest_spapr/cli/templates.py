"""``spapr template``: booted machines at rest."""

from __future__ import annotations

import argparse
import time

from pytest_spapr.cache import Entry, megabytes
from pytest_spapr.cli.run import Areas, Run, tell_removed
from pytest_spapr.errors import CacheError
from pytest_spapr.size import parse_size
from pytest_spapr.templates import store as templates


def add(areas: Areas, common: argparse.ArgumentParser) -> None:
    """Add the area ``template`` to the command."""
    what = "Templates: booted machines at rest on disk, which a test's machines are cloned from. Test runs make them."
    parser = areas.add_parser("template", help="templates of machines", description=what)
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


def _template_list(run: Run) -> None:
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


def _template_remove(run: Run) -> None:
    entries = {entry.key: entry for entry in run.cache.entries(templates.KIND)}
    if missing := [key for key in run.arguments.keys if key not in entries]:
        raise CacheError(f"no template in the cache {run.cache.root} is called {missing[0]!r}: see `spapr template list`.")
    chosen = list(entries) if run.arguments.all else run.arguments.keys
    kept = [key for key in chosen if not _removed(run, entries[key])]
    if kept:
        raise CacheError(f"in use by a run, and kept: {', '.join(kept)}")


def _removed(run: Run, entry: Entry) -> bool:
    if not templates.remove(run.cache, entry.key):
        return False
    tell_removed(entry)
    return True


def _template_gc(run: Run) -> None:
    given = run.arguments.max_size
    bound = run.settings.template_space.value if given is None else parse_size(given, "--max-size: ")
    for entry in templates.trim(run.cache, bound):
        tell_removed(entry)
    left = run.cache.entries(templates.KIND)
    total = sum(entry.size for entry in left)
    over = ": those in use were kept" if total > bound else ""
    print(f"{len(left)} left, {megabytes(total)} of {megabytes(bound)}{over}")
