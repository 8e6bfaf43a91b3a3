"""The command line of ``ci/break-faults``.

Exit status: 0 if some test noticed for each verb that it did nothing; 1 if none did; 2 if the tests could not be run; 130
after Ctrl-C, 143 after SIGTERM.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from ci.command import ended
from ci.faults.disarm import LASTING, SUDDEN

_PYTEST: Final = (sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "ci.faults.disarm")
_TESTS: Final = tuple(f"tests/hotplug/test_vfio_{what}.py" for what in ("faults", "recovery", "life", "dma"))
_TESTS_FAILED: Final = 1


def main(argv: Sequence[str] | None = None) -> int:
    """Disarm one verb after the other, and tell which tests failed for it."""
    arguments, for_pytest = _parser().parse_known_args(argv)
    return ended("ci/break-faults", lambda: _run(arguments.verb or (*LASTING, *SUDDEN), for_pytest))


def _run(verbs: Sequence[str], for_pytest: Sequence[str]) -> int:
    status = 0
    for verb in verbs:
        with tempfile.TemporaryDirectory(prefix="spapr-faults-") as directory:
            record = Path(directory) / "record"
            options = (f"--disarm={verb}", f"--disarm-record={record}", f"--spapr-artefacts={directory}/artefacts")
            done = subprocess.run([*_PYTEST, *options, *_TESTS, *for_pytest], check=False, stdout=subprocess.PIPE, text=True)
            if done.returncode not in (0, _TESTS_FAILED):
                sys.stdout.write(done.stdout)
                return 2
            used = [json.loads(line) for line in record.read_text(encoding="utf-8").splitlines()] if record.exists() else []
        status |= not any(one["failed"] for one in used)
        sys.stdout.writelines(f"{line}\n" for line in _told(verb, used))
        sys.stdout.flush()
    return status


def _told(verb: str, used: Sequence[dict[str, Any]]) -> Iterator[str]:
    noticed = [one for one in used if one["failed"]]
    yield f"{verb}: {'noticed' if noticed else 'NOT NOTICED'} by {len(noticed)} of the {len(used)} tests that use it"
    for one in used:
        yield f"    {one['test'].rpartition('/')[2]}: {one['failed'] or 'passed all the same'}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="ci/break-faults",
        description="Have each verb by which tests break a passed-through device do nothing, and show which test notices. "
        "Arguments that are not listed here go to pytest.",
        epilog="Exit status: 0 each verb was noticed, 1 one was not, 2 the tests could not be run.",
        allow_abbrev=False,
    )
    parser.add_argument("--verb", action="append", choices=(*LASTING, *SUDDEN), help="only this one; may be given repeatedly")
    return parser


if __name__ == "__main__":
    sys.exit(main())
