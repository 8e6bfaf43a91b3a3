"""``spapr bisect``: the commit of QEMU or Linux that changed what a test says."""

from __future__ import annotations

import argparse
import hashlib
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Final

from pytest_spapr.bisect.asking import State
from pytest_spapr.bisect.checkout import Checkout, Repository
from pytest_spapr.bisect.journal import Told
from pytest_spapr.bisect.making import BINARIES, OPTIONS, Making
from pytest_spapr.bisect.search import Found, Search, flaky_commits, untold_commits
from pytest_spapr.bisect.step import Plan
from pytest_spapr.builds.source import TREES
from pytest_spapr.cli.run import Areas, Run, number_of, writable
from pytest_spapr.errors import ConfigError

_FOUND, _SUSPECTS = 0, 1
_TERMINATED: Final = 128 + signal.SIGTERM
_RUNS: Final = 2
_SHORT: Final = 12


class _Terminated(KeyboardInterrupt):
    """SIGTERM, which CI cancels with: all is ended as by Ctrl-C."""


def add(areas: Areas, common: argparse.ArgumentParser) -> None:
    """Add the command ``bisect``."""
    parser = areas.add_parser(
        "bisect",
        parents=[common],
        help="find the commit of QEMU or Linux that made a test fail",
        description="Find the first commit at which a test fails, by `git bisect run`: each commit is built, on top of what was "
        "compiled before, and the test is run with it. What cannot be built, or skips the test, is passed by. All of it happens in a "
        "working tree in the cache: yours is only read.",
        epilog="Exit status: 0 the first bad commit is found, 1 it is one of several, 2 an error.",
    )
    parser.add_argument("--good", required=True, metavar="COMMIT", help="a commit at which the test passes")
    parser.add_argument("--bad", required=True, metavar="COMMIT", help="a later one at which it fails")
    tree = parser.add_mutually_exclusive_group(required=True)
    tree.add_argument("--qemu-tree", type=Path, metavar="DIR", help="search in this repository of QEMU")
    tree.add_argument("--kernel-tree", type=Path, metavar="DIR", help="search in this repository of Linux")
    parser.add_argument("--kernel-config", type=Path, metavar="FILE", help="the .config that kernels are built with")
    parser.add_argument(
        "--build", metavar="COMMAND", help="how a commit is built, for the shell, in place of our own way; it runs in the tree"
    )
    parser.add_argument(
        "--binary", metavar="PATH", help=f"what --build makes, in the tree (default: {BINARIES['qemu']}, {BINARIES['kernel']})"
    )
    parser.add_argument(
        "--runs",
        type=number_of("runs"),
        default=_RUNS,
        metavar="N",
        help="how often the test is to say the same of a commit (default: %(default)s)",
    )
    parser.add_argument(
        "--jobs", "-j", type=number_of("jobs"), metavar="N", help="compilers at a time (default: one for each CPU)"
    )
    parser.add_argument(
        "--output", type=Path, default=Path("artefacts"), metavar="DIR", help="where logs and artefacts go (default: artefacts)"
    )
    parser.add_argument("test", nargs="+", metavar="TEST", help="after `--`: the test, and other arguments of pytest")
    parser.set_defaults(run=_bisect)


def _bisect(run: Run) -> int:
    arguments = run.arguments
    kind, tree = ("qemu", arguments.qemu_tree) if arguments.qemu_tree is not None else ("kernel", arguments.kernel_tree)
    making = _making(arguments, kind)
    repository = Repository(tree, f"--{kind}-tree={tree}")
    which = repository.range(arguments.good, arguments.bad)
    if which.dirty:
        sys.stderr.write(f"{repository.root}: what is changed in {', '.join(which.dirty)} is not committed, and not tested\n")
    place = f"bisect-{kind}-{hashlib.sha256(str(repository.root).encode()).hexdigest()[:_SHORT]}"
    with run.cache.lock(f"{TREES}-{place}", run.progress), _terminable():
        root = run.cache.directory(TREES, place)
        output = writable(arguments.output.absolute(), "bisect")
        settings = {name: vars(arguments)[name] for name in ("cache_dir", "debian_mirror", "offline")}
        settings["cache_dir"] = str(run.cache.root)
        plan = Plan(str(root), str(output), str(Path.cwd()), arguments.test, making, settings, arguments.runs)

        def tell(told: Told) -> None:
            run.progress.done()
            print(f"{_line(repository, told)}  [{told.building:.0f} s to build, {told.testing:.0f} s to test]", flush=True)

        search = Search(repository, Checkout(root, repository), plan, run.progress, tell)
        try:
            found = search.find(which)
        except _Terminated:
            return _TERMINATED
    run.progress.done()
    _report(repository, found)
    print(f"logs and artefacts: {output}")
    return _SUSPECTS if found.first_bad is None else _FOUND


def _making(arguments: argparse.Namespace, kind: str) -> Making:
    """Return how the tree is built. :raises ConfigError: options that do not go together."""
    if arguments.binary is not None and arguments.build is None:
        raise ConfigError("--binary names what --build makes: give both.")
    if arguments.kernel_config is not None and (kind != "kernel" or arguments.build is not None):
        raise ConfigError("--kernel-config is for --kernel-tree without --build.")
    option = OPTIONS[kind]
    if given := [word for word in arguments.test if word.split("=")[0] == option]:
        raise ConfigError(f"{given[0]}: what is tested is what each commit gives; leave {option} out.")
    config = None if arguments.kernel_config is None else str(arguments.kernel_config.absolute())
    jobs = arguments.jobs or len(os.sched_getaffinity(0))
    making = Making(kind, jobs, arguments.build, arguments.binary or BINARIES[kind], config)
    making.check()
    return making


@contextmanager
def _terminable() -> Iterator[None]:
    """Have SIGTERM end the block as Ctrl-C does."""

    def end(_number: int, _frame: FrameType | None) -> None:
        raise _Terminated

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _line(repository: Repository, told: Told) -> str:
    return f"{repository.subject(told.commit)}: {told.ruling.state}: {told.ruling.why}"


def _report(repository: Repository, found: Found) -> None:
    if found.first_bad is not None:
        print(f"\nthe first bad commit, after {len(found.told)} steps:\n{repository.described(found.first_bad)}\n")
    else:
        print(f"\nthe first bad commit is one of these {len(found.suspects)}, after {len(found.told)} steps:")
        untold = {told.commit: told for told in untold_commits(found)}
        for commit in found.suspects:
            print(f"  {_line(repository, untold[commit]) if commit in untold else repository.subject(commit)}")
    for told in flaky_commits(found):
        share = f"failed in {told.ruling.failed} of {told.ruling.runs} runs"
        taken = "it was taken for bad" if told.ruling.state is State.BAD else "it was passed by"
        print(f"flaky: {repository.subject(told.commit)}: {share}; {taken}")
