"""Runs whose surroundings turn against them: the clock is set, another user is there."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from pytest_spapr import GuestImage, QemuBuild

from .telling import named, started

_SECONDS = 300.0
# Each look at the clock finds it set: a day on, two back, and so on, each time further.
_CLOCK = """
    import itertools
    import time

    real, looks = time.time, itertools.count()

    def jumped():
        look = next(looks)
        return real() + 86400 * look * (-1) ** look

    time.time = jumped
    time.time_ns = lambda: int(jumped() * 1e9)
    """
_TEST = """
    from pytest_spapr import Outcome

    def test_a_core(machine, guest):
        # A date may be set in the guest, too, and while it works.
        guest.run("date -s @1000000000 && echo 'while :; do date -s @2000000000; date -s @1000000000; done' > /dates").check()
        guest.run("setsid sh /dates > /dev/null 2>&1 < /dev/null &").check()
        core = machine.cores.plug()
        assert core.unplug().outcome is Outcome.REMOVED
        assert guest.run("echo $((6 * 7))").stdout == "42\\n"
        assert False, "so that the timeline is kept"
    """


def test_a_clock_that_is_set_all_the_time_changes_nothing(
    pytester: pytest.Pytester, qemu_build: QemuBuild, guest_image: GuestImage
) -> None:
    """Neither the host's nor the guest's: no wait ends early or hangs, and the timeline is in order."""
    pytester.makeconftest(_CLOCK)
    pytester.makepyfile(_TEST)
    words = ["-p", "no:cacheprovider", f"--spapr-qemu={named(qemu_build)}", f"--spapr-image={guest_image.directory}"]
    with started([sys.executable, "-m", "pytest", *words, "--spapr-artefacts=left"], pytester.path) as process:
        output = process.communicate(timeout=_SECONDS)[0]
    assert "AssertionError: so that the timeline is kept" in output
    assert "attempts           1 removed" in output
    [directory] = [path for path in Path(pytester.path, "left").iterdir() if path.is_dir()]
    assert str(directory) in output
    times = [json.loads(line)["time"] for line in (directory / "timeline.jsonl").read_text().splitlines()]
    # What the template did when it booted is negative.
    for part in ([time for time in times if time < 0], [time for time in times if time >= 0]):
        assert part == sorted(part)
        assert len(part) > 50
        assert max(map(abs, part)) < 3600
