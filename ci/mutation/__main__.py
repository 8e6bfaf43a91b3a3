"""The command line of ``ci/mutants``.

Exit status: 0 if each break was noticed; 1 if one was not; 2 for what cannot be run at all; 130 after Ctrl-C, with what was tried by then
on record.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Final

from ci.command import alone, ended, progress_shown
from ci.mutation.breaks import Break, read_breaks
from ci.mutation.results import Result, Results, table, write_table
from ci.mutation.rig import BROKEN, PLAIN, Make, Rig
from ci.mutation.watchers import ROOT, watchers
from pytest_spapr.builds import source, store
from pytest_spapr.cache import Cache
from pytest_spapr.cli.run import Run, number_of
from pytest_spapr.config import read
from pytest_spapr.errors import ConfigError
from pytest_spapr.progress import Progress
from pytest_spapr.qemu.build import QemuBuild
from pytest_spapr.supply import supply_build

#: The release whose code is broken.
SOURCE: Final = "10.0"
BREAKS: Final = ROOT / "ci" / "mutation" / f"qemu-{SOURCE}.toml"
PAGE: Final = ROOT / "docs" / "mutants.md"


def main(argv: Sequence[str] | None = None) -> int:
    """Try the breaks and return the exit status."""
    arguments = _parser().parse_args(argv)

    def run() -> int:
        with progress_shown() as progress:
            return _run(arguments, Run(arguments, progress))

    return ended("ci/mutants", run)


def _run(arguments: argparse.Namespace, run: Run) -> int:
    every = read_breaks(BREAKS)
    chosen = _chosen(every, arguments.names)
    if arguments.list:
        for one in chosen:
            sys.stdout.write(f"{one.name}: {one.file}, {one.function or 'anywhere'}: {one.old}  ->  {one.new}\n    {one.why}\n")
        return 0
    with alone(arguments.results, "ci/mutants") as directory:
        try:
            if not arguments.table:
                _try_all(arguments, run, chosen, directory)
        except OSError as error:
            raise ConfigError(f"--results={directory}: {error.strerror}") from error
    known = Results(directory).read()
    write_table(arguments.page, table(every, known))
    tried = [known[one.name] for one in chosen if one.name in known]
    unnoticed = [result.name for result in tried if not result.by]
    sys.stdout.write(f"{len(tried) - len(unnoticed)} of {len(tried)} breaks noticed; the table is in {arguments.page}\n")
    sys.stdout.writelines(f"NOT NOTICED: {name}\n" for name in unnoticed)
    return 1 if unnoticed else 0


def _chosen(every: Sequence[Break], names: Sequence[str]) -> list[Break]:
    """Return the breaks that were named, or all. :raises ConfigError: there is none of this name."""
    if unknown := sorted(set(names) - {one.name for one in every}):
        raise ConfigError(f"no break is called {unknown[0]}; --list tells those that there are.")
    return [one for one in every if not names or one.name in names]


def _try_all(arguments: argparse.Namespace, run: Run, chosen: Sequence[Break], directory: Path) -> None:
    make = _make(run.cache, run, arguments.jobs)
    # Also for the source, which the first build gets.
    make(PLAIN, ())
    with ExitStack() as hold:
        tree = hold.enter_context(source.pristine(SOURCE, run.cache))
        probed = partial(_probed, run.cache, run.progress)
        rig = Rig(tree, make, watchers(probed, PLAIN, arguments.timeout), directory)
        # Before hours of work: does each fit this source?
        keys = {one.name: rig.key(one) for one in chosen}
        results = Results(directory)
        known = results.read()
        hold.callback(store.remove, run.cache, BROKEN)
        for number, one in enumerate(chosen, start=1):
            before = known.get(one.name)
            if before is not None and before.key == keys[one.name] and (before.by or not arguments.again):
                continue
            result = rig.try_break(one)
            run.progress.done()
            results.add(result)
            _tell(f"{number} of {len(chosen)}", result)


def _make(cache: Cache, run: Run, jobs: int | None) -> Make:
    count = jobs or len(os.sched_getaffinity(0))

    def make(name: str, patches: Sequence[Path]) -> None:
        source.build(SOURCE, name, patches, cache, run.mirror, run.progress, jobs=count)

    return make


def _probed(cache: Cache, progress: Progress, name: str) -> QemuBuild:
    return supply_build(read({"qemu": name, "cache_dir": str(cache.root)}), cache, progress)


def _tell(place: str, result: Result) -> None:
    who = f"{result.by}: {result.said}" if result.by else "NOT NOTICED"
    took = ", ".join(f"{what} {seconds:g} s" for what, seconds in result.seconds.items())
    sys.stdout.write(f"{place}: {result.name}: {who} ({took})\n")
    sys.stdout.writelines(f"    {problem}\n" for problem in result.problems)
    sys.stdout.flush()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="ci/mutants",
        description=f"Break one line of QEMU {SOURCE}'s hotplug code after the other, build each, and see who notices: the probe, tests "
        "without a guest, an exploration without one, tests with one. What was tried before is not tried again.",
        epilog="Exit status: 0 each was noticed, 1 one was not, 2 it cannot be run at all, 130 interrupted.",
    )
    parser.add_argument("names", nargs="*", metavar="BREAK", help="only these (default: all)")
    parser.add_argument("--list", action="store_true", help="list the breaks and do no more")
    parser.add_argument("--table", action="store_true", help="only write the table of what was tried")
    parser.add_argument("--again", action="store_true", help="try once more what nobody noticed")
    parser.add_argument(
        "--results", type=Path, default=ROOT / "artefacts" / "mutants", metavar="DIR", help="where results are kept"
    )
    parser.add_argument("--page", type=Path, default=PAGE, metavar="FILE", help="where the table goes (default: docs/mutants.md)")
    parser.add_argument(
        "--jobs", "-j", type=number_of("jobs"), metavar="N", help="compilers at a time (default: one for each CPU)"
    )
    parser.add_argument(
        "--timeout", type=number_of("minutes"), default=30, metavar="MINUTES", help="for each watcher of a break (30)"
    )
    parser.add_argument("--cache-dir", metavar="DIR", help="as --spapr-cache-dir")
    parser.add_argument("--debian-mirror", metavar="URL", help="as --spapr-debian-mirror")
    parser.add_argument("--offline", action="store_true", default=None, help="as --spapr-offline")
    return parser


if __name__ == "__main__":
    sys.exit(main())
