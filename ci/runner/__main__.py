"""The command line of the runner.

Exit status: 0 if every test passed on machines that KVM ran; 1 if not; 2 for what cannot be run at all; 130 after Ctrl-C.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Final

from ci.command import ended, progress_shown, require_directory
from ci.runner import payload, verdict, wheels
from ci.runner.machine import BUILD, IMAGE, Runner, runner
from pytest_spapr import config
from pytest_spapr.cache import Cache
from pytest_spapr.cli.run import number_of
from pytest_spapr.debian.mirror import mirror_of
from pytest_spapr.images import build as images
from pytest_spapr.images.recipe import DEFAULT_IMAGE, load
from pytest_spapr.images.store import GuestImage
from pytest_spapr.progress import Progress
from pytest_spapr.supply import supply_build, supply_image

#: Devices that come and go, and refusals of each way that there is: by QEMU, told by the guest, and silent.
SMOKE: Final = (
    f"test_mode.py::{verdict.PROOF}",
    "test_cores.py::test_a_core_comes_and_goes",
    "test_core_refusals.py::test_the_last_online_cpu_is_refused_and_can_be_retried",
    "test_core_refusals.py::test_the_boot_core_is_protected_by_qemu",
    "test_dimms.py::test_a_dimm_comes_and_goes",
    "test_dimm_refusals.py::test_a_refusal_at_the_first_lmb_is_silent",
    "test_pci.py::test_a_pci_device_comes_and_goes",
)
_REPORT: Final = "junit.xml"
_LIKE_IT: Final = "+payload"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the suite on the runner and return the exit status."""
    arguments = _parser().parse_args(argv)

    def run() -> int:
        with progress_shown() as progress, ExitStack() as hold:
            return _run(arguments, progress, hold)

    return ended("ci/ppc64-runner", run)


def _run(arguments: argparse.Namespace, progress: Progress, hold: ExitStack) -> int:
    began = time.monotonic()
    settings = config.read({"qemu": BUILD, "image": arguments.image})
    cache = Cache(settings.cache_dir.value)
    asked = [payload.installed_name(test) for test in arguments.tests or SMOKE]
    # Without it nothing is proven.
    tests = list(dict.fromkeys([payload.installed_name(SMOKE[0]), *asked]))
    build = supply_build(settings, cache, progress)
    image = _image(settings, cache, progress, hold)
    results = require_directory(arguments.results, "--results")
    # Only what is ours: the directory is the user's choice.
    for name in ("artefacts", "runner"):
        shutil.rmtree(results / name, ignore_errors=True)
    for name in (_REPORT, "pytest.txt"):
        (results / name).unlink(missing_ok=True)
    with runner(build, image, cache, settings.template_space.value, progress, results / "runner") as machine:
        up = time.monotonic()
        why = f": {machine.started.why}" if machine.started.why else ""
        _say(f"the runner is up after {up - began:.0f} s, by a {machine.started.how}{why}")
        status = _tests(machine, tests, arguments.minutes * 60, results)
        _say(f"the tests took {time.monotonic() - up:.0f} s, everything {time.monotonic() - began:.0f} s")
    cases = verdict.read(results / _REPORT)
    for case in cases:
        _say(f"{case.outcome:8} {case.seconds:6.1f} s  {case.accelerator or '-':4} {case.name}")
    wrong = verdict.complaints(cases, tests, status)
    for complaint in wrong:
        _say(f"NOT PROVEN: {complaint}")
    _say(f"results: {results}")
    return 1 if wrong else 0


def _image(settings: config.Settings, cache: Cache, progress: Progress, hold: ExitStack) -> GuestImage:
    """Return the runner's image with all that is to be installed in it. :param hold: no other run removes it before this is closed."""
    plain = images.build(load(IMAGE), cache, lambda: mirror_of(settings, "the runner's image", wheels.INSTEAD), progress)
    guest = supply_image(settings, cache, progress)
    own = wheels.own(settings, cache, progress)
    files = payload.tree([own, *wheels.needed(own, settings, cache, progress)], guest, map(payload.installed_name, SMOKE))
    return images.with_files(plain, f"{IMAGE}{_LIKE_IT}", files, cache, hold)


def _tests(machine: Runner, tests: Sequence[str], seconds: float, results: Path) -> int:
    """Run the tests and bring back what comes of them; return pytest's exit status."""
    try:
        status = machine.run(tests, _say, seconds)
        machine.fetch(results)
    except BaseException:
        machine.leave_record(results / "runner")
        raise
    if status:
        machine.leave_record(results / "runner")
    return status


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="ci/ppc64-runner", description="Run the hotplug suite with KVM, on an emulated ppc64 machine with nested KVM."
    )
    parser.add_argument("tests", nargs="*", metavar="TEST", help="tests of tests/hotplug, by file or id (default: a few)")
    parser.add_argument("--image", default=DEFAULT_IMAGE, metavar="NAME", help=f"guests under test (default: {DEFAULT_IMAGE})")
    parser.add_argument("--minutes", type=number_of("minutes"), default=20, help="end the tests after so long (default: 20)")
    parser.add_argument(
        "--results",
        type=Path,
        default=wheels.ROOT / "artefacts" / IMAGE,
        metavar="DIR",
        help="where the results go, in place of those of an earlier run",
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
