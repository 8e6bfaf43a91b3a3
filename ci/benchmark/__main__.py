"""The command line of the benchmark.

Exit status: 0 if everything was measured and every outcome was right; 1 if not, or if ``--check`` was given and a ratio misses its
bar; 2 for what cannot be run at all; 130 and 143 after Ctrl-C and SIGTERM, with what had been measured by then.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Final

from ci.benchmark import host, table
from ci.benchmark.run import Plan, Run
from ci.benchmark.runs import ROOT
from ci.benchmark.subject import Subject
from ci.command import ended, progress_shown
from pytest_spapr import config
from pytest_spapr.cli.run import number_of
from pytest_spapr.errors import ConfigError
from pytest_spapr.images.recipe import DEFAULT_IMAGE
from pytest_spapr.progress import Progress
from pytest_spapr.qemu.qmp import QmpLoop

_ROUNDS: Final = 5


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark and return its exit status."""
    arguments = _parser().parse_args(argv)

    def run() -> int:
        with progress_shown() as progress, ExitStack() as made:
            return _measured(_prepared(arguments, progress, made), check=arguments.check)

    return ended("ci/bench", run)


def _prepared(arguments: argparse.Namespace, progress: Progress, made: ExitStack) -> Run:
    """Get everything that is to be measured, and say what will be done. :raises SpaprError: something cannot be had."""
    file = _writable(arguments.json or ROOT / "artefacts" / f"bench-{time.strftime('%Y%m%d-%H%M%S')}.json")
    found = host.facts()
    loop = made.enter_context(QmpLoop())
    directory = Path(made.enter_context(tempfile.TemporaryDirectory(prefix="spapr-bench-")))
    subjects = [Subject.obtain(_settings(arguments, qemu), loop, directory, progress) for qemu in arguments.qemu or [None]]
    progress.done()
    _name_apart(subjects)
    plan = Plan(arguments.rounds, arguments.suite)
    for subject in subjects:
        sys.stderr.write(
            f"{subject.name}: {subject.build.version_text}, {subject.accelerator}, Linux {subject.image.kernel_release}\n"
        )
    sys.stderr.write(f"host: {host.describe(found)}\n")
    if warning := host.loaded(found):
        sys.stderr.write(f"warning: {warning}\n")
    suite = "with the suite" if plan.suites else "without the suite, see --suite"
    minutes = plan.seconds(len(subjects)) / 60
    sys.stderr.write(f"{plan.rounds} rounds, {suite}: about {minutes:.0f} minutes on two idle CPUs under TCG\n")
    return Run(plan=plan, subjects=subjects, progress=progress, stderr=sys.stderr, file=file, host_facts=found)


def _measured(run: Run, *, check: bool) -> int:
    try:
        run.measure()
    finally:
        run.progress.done()
        run.write()
        _show(run)
    missed = [verdict for _, verdict in run.verdicts() if verdict.bar.is_ratio and verdict.holds is False]
    return 1 if run.errors or (check and missed) else 0


def _show(run: Run) -> None:
    for subject in run.subjects:
        sys.stdout.write(
            f"{subject.name}: {subject.build.version_text}, {subject.accelerator}, image {subject.facts()['image']}, "
            f"Linux {subject.image.kernel_release}, guest of {subject.spec.memory} MiB\n"
        )
    sys.stdout.write(f"host: {host.describe(run.host_facts)}\n\n")
    for line in table.lines({subject.name: subject.figures for subject in run.subjects}, run.plugin):
        sys.stdout.write(f"{line}\n")
    sys.stdout.write("\n")
    for subject in run.subjects:
        for defect, times in subject.defects.items():
            sys.stdout.write(f"{subject.name}: known defect {defect} met {times} times, these samples are missing\n")
        if late := subject.figures.notes.get("not_prepared"):
            sys.stdout.write(
                f"{subject.name}: {late} clones were not prepared ahead, most likely for want of slots: started at need\n"
            )
    for (whose, what, said), times in Counter((one["subject"], one["what"], one["said"]) for one in run.errors).items():
        often = f" ({times} times)" if times > 1 else ""
        sys.stdout.write(f"NOT MEASURED: {whose or 'all'}: {what}{often}: {said}\n")
    for warning in filter(None, (host.loaded(run.host_facts), host.disturbed(run.others_share()))):
        sys.stdout.write(f"warning: {warning}\n")
    if not run.complete:
        sys.stdout.write("interrupted: the figures are those until then\n")
    sys.stdout.write(f"written to {run.file}\n")


def _settings(arguments: argparse.Namespace, qemu: str | None) -> config.Settings:
    given = {"qemu": qemu, "image": arguments.image, "cache_dir": arguments.cache_dir, "offline": arguments.offline}
    settings = config.read(given)
    if not settings.image.named:
        settings = config.read({**given, "image": DEFAULT_IMAGE})
    return settings


def _writable(file: Path) -> Path:
    """Return the file, which stays as it is until there is something to write.

    :raises ConfigError: it cannot be written: better now than after the run.
    """
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("a", encoding="utf-8"):
            pass
        if file.is_file() and file.stat().st_size == 0:
            file.unlink()
        return file
    except OSError as error:
        raise ConfigError(f"--json={file}: cannot be written: {error.strerror}") from error


def _name_apart(subjects: Sequence[Subject]) -> None:
    """Number those that would have the same name. :raises ConfigError: one build was named twice."""
    seen: dict[str, int] = {}
    hashes = set()
    for subject in subjects:
        if subject.build.sha256 in hashes:
            raise ConfigError(f"--qemu: {subject.build.name} was named twice")
        hashes.add(subject.build.sha256)
        seen[subject.name] = seen.get(subject.name, 0) + 1
        if seen[subject.name] > 1:
            subject.name = f"{subject.name} ({seen[subject.name]})"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="ci/bench",
        description="Measure what machines, scenarios and the suite cost here: one table, and one JSON file. "
        "Every other setting is taken from the environment, as SPAPR_...",
        epilog="Exit status 0: everything was measured and every outcome was right. Times never fail a run.",
    )
    parser.add_argument(
        "--qemu", action="append", metavar="PATH|NAME", help="QEMU build, as --spapr-qemu; may be repeated to compare builds"
    )
    parser.add_argument("--image", metavar="NAME|DIRECTORY", help=f"guest image, as --spapr-image (default: {DEFAULT_IMAGE})")
    parser.add_argument(
        "--rounds",
        type=number_of("rounds"),
        default=_ROUNDS,
        metavar="N",
        help=f"rounds of all measurements but the suite (default: {_ROUNDS})",
    )
    suite = parser.add_mutually_exclusive_group()
    suite.add_argument(
        "--suite",
        type=number_of("rounds"),
        nargs="?",
        const=1,
        default=0,
        metavar="N",
        help="run the suite too, N times (default: once) in each of six ways: clones, boots with VOF, boots with SLOF, with 1 and 2 "
        "workers; about 50 minutes for each QEMU build",
    )
    suite.add_argument("--no-suite", dest="suite", action="store_const", const=0, help="leave the suite out (the default)")
    parser.add_argument("--check", action="store_true", help="exit with status 1 if a ratio misses its bar")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where to (default: artefacts/bench-TIME.json)")
    parser.add_argument("--cache-dir", metavar="DIR", help="as --spapr-cache-dir")
    parser.add_argument("--offline", action="store_true", default=None, help="as --spapr-offline")
    return parser


if __name__ == "__main__":
    sys.exit(main())
