"""The command line of ``ci/break-contracts``.

Exit status: 0 if every fact of every row was noticed; 1 if one was not; 2 if the suite could not be run or recorded nothing; 130 after
Ctrl-C, 143 after SIGTERM.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Final

from ci.command import ended, require_directory
from ci.contracts.facts import broken
from ci.contracts.generations import QEMUS
from ci.contracts.overlay import toml
from ci.contracts.replay import RECORD, UNIT_TEST, Verdict, judge, keep, on_record, read
from pytest_spapr.errors import ConfigError
from pytest_spapr.hotplug.rows import packaged_rows

_ROOT: Final = Path(__file__).parents[2]
_PYTEST: Final = (sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider")
_TESTS_FAILED: Final = 1


def main(argv: Sequence[str] | None = None) -> int:
    """Record a run of the suite or take one that was recorded, break the contracts, and tell who noticed."""
    arguments, for_pytest = _parser().parse_known_args(argv)

    def run() -> int:
        with tempfile.TemporaryDirectory(prefix="spapr-contracts-") as directory:
            return _run(arguments, for_pytest, Path(directory))

    return ended("ci/break-contracts", run)


def _run(arguments: argparse.Namespace, for_pytest: Sequence[str], directory: Path) -> int:
    recorded = (arguments.recorded or directory / "recorded").absolute()
    if not list(recorded.glob("*.jsonl")) and not _record(recorded, for_pytest):
        return 2
    attempts = read(recorded)
    if arguments.keep:
        new = keep(packaged_rows(), attempts, on_record(), arguments.keep)
        RECORD.write_text("".join(f"{one.line()}\n" for one in (*on_record(), *new)), encoding="utf-8")
        _say(f"{len(new)} attempts put on record in {RECORD.relative_to(_ROOT)}")
    verdicts = judge(packaged_rows(), attempts, on_record())
    _say(*_table(verdicts))
    if not any(verdict.live for verdict in verdicts):
        _say("no test held an attempt against any row")
        return 2
    silent = [verdict for verdict in verdicts if verdict.unnoticed]
    survived = [line for verdict in _some(verdicts, arguments.live) for line in _try(verdict, directory, _options(for_pytest))]
    _say(*survived)
    return 1 if silent or survived else 0


def _record(recorded: Path, for_pytest: Sequence[str]) -> bool:
    """Record a run of the suite; return whether it was run to its end. One that was not leaves nothing that is taken for a whole one.

    :raises ConfigError: it cannot be recorded there.
    """
    require_directory(recorded.parent, "--recorded")
    if recorded.exists() and (not recorded.is_dir() or any(recorded.iterdir())):
        raise ConfigError(f"--recorded={recorded}: there is something else than a recorded run. Name another directory.")
    with tempfile.TemporaryDirectory(prefix=f".{recorded.name}-", dir=recorded.parent) as scratch:
        run = Path(scratch, "run")
        run.mkdir()
        # A test that fails shows in its own right; those that pass say enough here.
        status = _pytest(["-p", "ci.contracts.record", f"--record-contracts={run}", *(for_pytest or ["tests/hotplug"])])
        if status not in (0, _TESTS_FAILED):
            return False
        run.rename(recorded)
    return True


def _table(verdicts: Sequence[Verdict]) -> list[str]:
    lines = []
    for verdict in verdicts:
        facts = len(verdict.noticed) + len(verdict.unnoticed)
        who = f"{len(verdict.live)} tests of this run" if verdict.live else f"{UNIT_TEST.partition('::')[0]} alone"
        lines.append(f"{_name(verdict)}: {len(verdict.noticed)} of {facts} broken facts noticed by {who}")
        lines += [f"    NOT NOTICED: {fact}" for fact in verdict.unnoticed]
    live = sum(bool(verdict.live) for verdict in verdicts)
    facts = sum(len(verdict.noticed) for verdict in verdicts)
    lines.append(f"{len(verdicts)} rows, {live} of them seen by tests of this run; {facts} broken facts noticed")
    return lines


def _some(verdicts: Sequence[Verdict], count: int) -> list[Verdict]:
    """Return so many rows that tests of this run speak for; the same ones in each run."""
    live = [verdict for verdict in verdicts if verdict.live]
    return Random(0).sample(live, min(count, len(live)))  # noqa: S311 - nobody is to be kept from guessing


def _try(verdict: Verdict, directory: Path, options: Sequence[str]) -> list[str]:
    """Break one fact of a row for real and run one test that must notice; return what to say if it does not."""
    facts = {fact: live for fact, tests in verdict.noticed.items() if (live := [test for test in tests if test in verdict.live])}
    fact, tests = Random(_name(verdict)).choice(sorted(facts.items()))  # noqa: S311
    overlay = directory / "broken.toml"
    overlay.write_text(toml(dict(broken(verdict.row.expectation))[fact]), encoding="utf-8")
    test = tests[0]
    _say(f"{_name(verdict)}: {fact} is broken, {test} must fail")
    status = _pytest([test, f"--spapr-contract={overlay}", *options])
    return [] if status == _TESTS_FAILED else [f"{test} does not fail (status {status}) with {fact} of {_name(verdict)} broken"]


def _pytest(arguments: Sequence[str]) -> int:
    return subprocess.run([*_PYTEST, *arguments], cwd=_ROOT, check=False).returncode


def _options(for_pytest: Sequence[str]) -> list[str]:
    """Return what is not the name of a test."""
    return [argument for argument in for_pytest if argument.startswith("--spapr-")]


def _name(verdict: Verdict) -> str:
    row = verdict.row
    bounds = (*sorted(row.needs), *(f"no {name}" for name in sorted(row.lacks)), *filter(None, (row.kernel, row.qemu)))
    return f"{row.subject[0]} {row.subject[1]!r} [{', '.join(bounds) or 'any'}]"


def _say(*lines: str) -> None:
    for line in lines:
        sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="ci/break-contracts",
        description="Break every fact of every contract row, and see that a test fails. Arguments that are not listed go to pytest: "
        "tests to record (default: tests/hotplug), --spapr-qemu=..., -n 2.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--recorded", type=Path, metavar="DIRECTORY", help="where a run is recorded; one that is there already is not made again"
    )
    parser.add_argument(
        "--live",
        type=int,
        default=5,
        metavar="N",
        help="break one fact of N rows for real, and run a test that must fail (default: 5)",
    )
    parser.add_argument(
        "--keep",
        choices=QEMUS,
        metavar="VERSION",
        help="put an attempt of this run on record for each row that has none; VERSION is what was run, e.g. 7.2",
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
