"""The command line of the nightly.

Exit status: 0 if the night is green, each task was run and nothing failed, and the behaviour sheet is as the contracts promise; 1 if not;
2 for what cannot be run at all; 130 after Ctrl-C or SIGTERM, with what had been run by then.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from ci.command import INTERRUPTED, alone, ended
from ci.night import trend
from ci.night.history import History, Line
from ci.night.job import ROOT, Avocado, Hosts, Job
from pytest_spapr.avocado.cell import NightCell, cell_of
from pytest_spapr.avocado.container import Container
from pytest_spapr.avocado.kept import sweep
from pytest_spapr.avocado.matrix import Matrix, read_matrix
from pytest_spapr.avocado.night import Night, read_night
from pytest_spapr.cli.run import number_of
from pytest_spapr.errors import ConfigError

#: Minutes of a task on another host: what Avocado's remote spawner has time for (spawner.remote.test_timeout, 4 h; 113 cannot take another
#: from a file), without what a runner needs to end.
_LONGEST: Final = 230


def main(argv: Sequence[str] | None = None) -> int:
    """Run the nightly and return its exit status."""
    arguments = _parser().parse_args(argv)
    return ended("ci/nightly", lambda: _alone(arguments))


def _alone(arguments: argparse.Namespace) -> int:
    with alone(arguments.results, "nightly") as results:
        return _night(arguments, results)


def _night(arguments: argparse.Namespace, results: Path) -> int:
    sweep()
    # What a job before this one had made may be gone from the cache.
    shutil.rmtree(results / "data", ignore_errors=True)
    avocado = Avocado(
        results=results,
        timeout=arguments.timeout * 60,
        jobs=arguments.jobs or len(arguments.slot) or len(os.sched_getaffinity(0)),
        container=_container(arguments),
        hosts=_hosts(arguments) if arguments.slot else None,
    )
    if arguments.replay:
        job = avocado.replay(arguments.replay)
        night = _told(job)
        return INTERRUPTED if job.interrupted else 0 if night.green else 1
    matrix = read_matrix(arguments.matrix.absolute())
    cells = _cells(matrix)
    tests = _tests(cells, arguments.matrix)
    if avocado.container:
        _require_seen(avocado.container, cells, tests)
    began = time.monotonic()
    variants = ["--json-variants-load", str(avocado.pairs(matrix))] if arguments.pairs else ["--mux-yaml", str(matrix.file)]
    job = avocado.run(variants, tests)
    night = _told(job)
    if job.interrupted:
        return INTERRUPTED
    history = History(results)
    history.add(Line.of(night, job.directory, arguments.matrix.name, time.monotonic() - began))
    _compare(avocado, history, night, job.directory, arguments.matrix.name)
    sheet = _sheet(cells, job.directory) if arguments.sheet else 0
    file = results / f"trend-{arguments.matrix.stem}.html"
    file.write_text(trend.page(arguments.matrix.name, history.lines(arguments.matrix.name)), encoding="utf-8")
    sys.stdout.write(f"trend: {file}\n")
    return 0 if night.green and not sheet else 1


def _hosts(arguments: argparse.Namespace) -> Hosts:
    """Return the hosts that were named. :raises ConfigError: one cannot be read, or it is not said how they reach this one."""
    for slot in arguments.slot:
        try:
            json.loads(slot.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ConfigError(f"--slot={slot}: expected a JSON file: {error}") from error
    if arguments.timeout > _LONGEST:
        raise ConfigError(f"--timeout={arguments.timeout}: with --slot a task may take {_LONGEST} minutes at most.")
    if not re.fullmatch(r"[^:]+:\d+", arguments.status or ""):
        raise ConfigError(f"--status={arguments.status}: expected HOST:PORT, where the hosts of --slot reach this one.")
    return Hosts(slots=[slot.absolute() for slot in arguments.slot], status=arguments.status, setup=arguments.setup)


def _container(arguments: argparse.Namespace) -> Container | None:
    """Return what tasks have containers of, if they do. :raises ConfigError: they cannot."""
    if not arguments.podman:
        if arguments.mount:
            raise ConfigError("--mount: only tasks in containers need it, with --podman=IMAGE.")
        return None
    if arguments.slot:
        raise ConfigError("--podman and --slot: tasks run in containers of this host or on others, not both.")
    container = Container(image=arguments.podman, mounts=[str(mount.absolute()) for mount in arguments.mount])
    container.require()
    return container


def _require_seen(container: Container, cells: Sequence[NightCell], tests: Sequence[str]) -> None:
    """Check that containers have the files that the matrix names. :raises ConfigError: naming one that they have not."""
    named = [
        *((name, str(value)) for cell in cells for name, value in cell.options.items()),
        *(("tests", test) for test in tests),
    ]
    for name, value in named:
        path = Path(value.partition("::")[0])
        if path.is_absolute() and path.exists() and not container.sees(path):
            raise ConfigError(f"{name}: {value} is not in the containers: add --mount=DIR, a directory with all that it needs.")


def _cells(matrix: Matrix) -> list[NightCell]:
    """Return a cell for each name of each axis, with what all have in common: what the whole product consists of.

    :raises ConfigError: one of them cannot be a cell.
    """
    return [
        cell_of(matrix.parameters({axis: name}), f"{matrix.file}: {axis}: {name}")
        for axis, names in matrix.axes.items()
        for name in names
    ]


def _tests(cells: Sequence[NightCell], file: Path) -> list[str]:
    tests = list(dict.fromkeys(test for cell in cells for test in cell.tests))
    if not tests:
        raise ConfigError(f"{file} names no tests: expected a list `tests` of modules.")
    for test in tests:
        if not (ROOT / test).exists():
            raise ConfigError(f"{file}: tests: there is no {test}.")
    return tests


def _told(job: Job) -> Night:
    """Say what a job came to, and return it. :raises NoResults: it has none."""
    night = read_night(job.directory)
    for task in night.tasks:
        if not task.fine:
            sys.stdout.write(f"{'NOT RUN' if task.unsupplied else task.status} {task.name}: {task.reason}\n")
            sys.stdout.writelines(f"  {line}\n" for line in (*task.facts.get("failed", ()), *task.missing()))
    for what, counts in (("tasks", night.statuses()), ("tests", night.sum("states")), ("unplugs", night.sum("outcomes"))):
        sys.stdout.write(f"{what}: {', '.join(f'{count} {name}' for name, count in counts.most_common()) or 'none'}\n")
    sys.stdout.write(f"{'green' if night.green else 'NOT GREEN'}: {job.directory}/results.html, results.json, junit.xml\n")
    return night


def _compare(avocado: Avocado, history: History, night: Night, directory: Path, matrix: str) -> None:
    """Say what is otherwise than in the last green night."""
    before = history.last_green(matrix, night.job)
    if before is None:
        sys.stdout.write("no green night before this one to compare with\n")
        return
    difference = avocado.diff(before, directory, directory / "diff.html")
    sys.stdout.write(f"since the last green night, {before.name}: {difference.strip() or 'no difference'}\n")


def _sheet(cells: Sequence[NightCell], directory: Path) -> int:
    """Make the behaviour sheet of all builds; return its status."""
    builds = dict.fromkeys(str(cell.options["qemu"]) for cell in cells if "qemu" in cell.options)
    images = dict.fromkeys(str(cell.options["image"]) for cell in cells if "image" in cell.options)
    words = [f"--qemu={build}" for build in builds] + [f"--image={image}" for image in list(images)[:1]]
    command = [sys.executable, "-c", "import sys; from pytest_spapr.cli import main; sys.exit(main())", "sheet", *words]
    return subprocess.run([*command, f"--output={directory / 'sheet'}"], cwd=ROOT, check=False).returncode


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="ci/nightly",
        description="Run test modules in each cell of a matrix, by Avocado: QEMU builds, guest images, modes and accelerators.",
        epilog="Exit status: 0 green, 1 not green, 2 it cannot be run at all, 130 interrupted.",
    )
    parser.add_argument(
        "--matrix", type=Path, default=ROOT / "ci" / "matrix.yaml", metavar="FILE", help="the matrix (default: ci/matrix.yaml)"
    )
    parser.add_argument(
        "--pairs", action="store_true", help="not the full product: cells such that each pair of names of two axes is in one"
    )
    parser.add_argument(
        "--results", type=Path, default=ROOT / "artefacts" / "nightly", metavar="DIR", help="where all nights leave their results"
    )
    parser.add_argument("--timeout", type=number_of("minutes"), default=30, metavar="MINUTES", help="for a module in a cell (30)")
    parser.add_argument("--jobs", type=number_of("tasks"), metavar="N", help="how many run at once (default: one for each CPU)")
    parser.add_argument("--podman", metavar="IMAGE", help="run each task in a container of this image, see docs/nightly.md")
    parser.add_argument(
        "--mount",
        type=Path,
        action="append",
        default=[],
        metavar="DIR",
        help="with --podman: a directory that the containers have, too, at its own path; may be repeated",
    )
    parser.add_argument(
        "--slot",
        type=Path,
        action="append",
        default=[],
        metavar="FILE",
        help="run on another host, see docs/nightly.md; may be repeated",
    )
    parser.add_argument("--status", metavar="HOST:PORT", help="with --slot: this host and a free port, as those hosts reach it")
    parser.add_argument(
        "--setup",
        metavar="COMMAND",
        default=f"cd {shlex.quote(str(ROOT))} && . .venv/bin/activate",
        help="with --slot: shell command there before each task (default: %(default)s)",
    )
    parser.add_argument("--without-sheet", dest="sheet", action="store_false", help="make no behaviour sheet at the end")
    parser.add_argument(
        "--replay", nargs="?", const="latest", metavar="JOB", help="run again what was not fine in the last night, or in this job"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
