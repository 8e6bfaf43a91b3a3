"""Run pip-audit on this environment and say what is to be done about what it finds."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from . import Audit, Unusable, audit, read_decisions

_DECISIONS = Path(__file__).with_name("decisions.toml")
_UNASKED = "the vulnerability service could not be asked"
# A hundred packages, each asked about; where nobody answers, pip-audit tries for longer than anybody waits.
_SECONDS = 300


def lines(found: Audit) -> list[str]:
    """Return what a person reads of it."""
    told = [f"OPEN     {finding}" for finding in found.open]
    told += [f"decided  {finding}: {decision.why}" for finding, decision in found.decided]
    told += [f"idle     the decision about {one.package}, {one.id}: nothing of it is found, remove it" for one in found.idle]
    if found.asked and found.unknown:
        told.append(f"unknown to the service: {', '.join(found.unknown)}")
    told.append(f"{found.asked} packages asked about, {len(found.open)} vulnerabilities open, {len(found.decided)} decided")
    return told


def status(found: Audit, *, require: bool) -> int:
    """Return the exit status: 1 for what is open, and for no answer where one is required."""
    return int(bool(found.open) or (require and not found.asked))


def ask() -> dict[str, Any] | None:
    """Return pip-audit's report, None if it has none to give."""
    command = [sys.executable, "-m", "pip_audit", "--local", "--format=json", "--progress-spinner=off"]
    try:
        # Its status is 1 where it has found something.
        done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=False)
        report: dict[str, Any] = json.loads(done.stdout)
    except subprocess.TimeoutExpired:
        return None
    except ValueError:
        sys.stderr.write("".join(f"pip-audit: {line}\n" for line in done.stderr.splitlines()[-3:]))
        return None
    return report


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="ci/audit", description=__doc__)
    parser.add_argument("--require", action="store_true", help="fail where the vulnerability service cannot be asked")
    parser.add_argument("--report", type=Path, metavar="FILE", help="what `pip-audit --format=json` wrote, instead of running it")
    chosen = parser.parse_args(arguments)
    try:
        decisions = read_decisions(_DECISIONS)
        report = json.loads(chosen.report.read_text()) if chosen.report else ask()
        found = audit(report or {"dependencies": []}, decisions)
    except (Unusable, ValueError, OSError) as error:
        sys.stderr.write(f"ci/audit: {error}\n")
        return 2
    told = lines(found) if found.asked else [_UNASKED]
    sys.stdout.write("".join(f"{line}\n" for line in told))
    return status(found, require=chosen.require)


if __name__ == "__main__":
    sys.exit(main())
