"""Runs whose surroundings turn against them: the clock is set, another user is there."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

import pytest

from pytest_spapr import GuestImage, QemuBuild

from .conftest import OTHER
from .telling import awaited, named, started

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


_WITH_ANOTHER = """
    import os
    from pathlib import Path
    from pytest_spapr import Outcome

    def test_a_core(machine, guest):
        core = machine.cores.plug()
        Path("told").write_text(str(machine.process.pid))
        Path("go").read_text()
        assert core.unplug().outcome is Outcome.REMOVED
        assert False, "so that it leaves artefacts"
    """
# All that can be opened below the places that are named, and what is no directory by its name.
_LOOK = """
import os, sys
for place in sys.argv[1:]:
    if os.access(place, os.R_OK | os.X_OK) or os.access(place, os.R_OK) and not os.path.isdir(place):
        print(place)
    for parent, _, names in os.walk(place):
        for name in names:
            if os.access(os.path.join(parent, name), os.R_OK | os.W_OK, effective_ids=True):
                print(os.path.join(parent, name))
"""


class User:
    """One of two users of a host. :ivar home: a directory of his own. :ivar cache: his cache."""

    def __init__(self, home: Path, uid: int, prefix: list[str]) -> None:
        self.home = home
        self.uid = uid
        self.prefix = prefix
        self.cache = home / "cache"
        for directory in (home, home / "tmp"):
            directory.mkdir(mode=0o755 if directory == home else 0o700)
            os.chown(directory, uid, uid)
        (home / "test_it.py").write_text("\n".join(line[4:] for line in _WITH_ANOTHER.splitlines()))

    def stock(self, build: QemuBuild, image: GuestImage) -> None:
        """Give him a cache with copies of a build and an image, which are his."""
        roots = [path for path in build.binary.parents if path.parent.name == "qemu"]
        for source in (*roots, image.directory):
            # Files that nobody writes to need not be there twice, but a key is its owner's.
            shutil.copytree(source, self.cache / source.parent.name / source.name, copy_function=self._copy, symlinks=True)
        for parent, _, _ in os.walk(self.cache):
            os.chown(parent, self.uid, self.uid)
            Path(parent).chmod(0o700)

    def _copy(self, source: str, target: str) -> None:
        if Path(source).name.endswith("_key"):
            shutil.copy2(source, target)
            os.chown(target, self.uid, self.uid)
        else:
            os.link(source, target)

    def command(self, *words: str) -> tuple[list[str], Mapping[str, str]]:
        shared = {name: os.environ[name] for name in ("PATH", "PYTHONPYCACHEPREFIX") if name in os.environ}
        env = {**shared, "HOME": str(self.home), "TMPDIR": str(self.home / "tmp"), "SPAPR_CACHE_DIR": str(self.cache)}
        return [*self.prefix, sys.executable, *words], env

    def pytest(self, build: QemuBuild, image: GuestImage) -> tuple[list[str], Mapping[str, str]]:
        words = ["-m", "pytest", "-p", "no:cacheprovider", "--spapr-start=boot", "--spapr-offline"]
        return self.command(*words, f"--spapr-qemu={build.name}", f"--spapr-image={image.name}", "test_it.py")


class TestTwoUsers:
    """As root, who can become the second of them; and where a package's build is in the cache, which is what they copy."""

    def test_at_once_each_gets_a_machine_and_nothing_of_the_other(
        self, common_ground: Path, other_user: list[str], qemu_build: QemuBuild, guest_image: GuestImage
    ) -> None:
        users = [User(common_ground / "one", os.getuid(), []), User(common_ground / "other", OTHER, other_user)]
        with ExitStack() as runs:
            processes = []
            for user in users:
                user.stock(qemu_build, guest_image)
                for name in ("told", "go"):
                    os.mkfifo(user.home / name)
                    os.chown(user.home / name, user.uid, user.uid)
                command, env = user.pytest(qemu_build, guest_image)
                processes.append(runs.enter_context(started(command, user.home, env)))
            pids = [awaited(user.home / "told", run) for user, run in zip(users, processes, strict=True)]
            # While both have a machine.
            places = [str(users[0].home / name) for name in ("cache", "tmp", "artefacts")]
            looking, env = users[1].command("-c", _LOOK, *places, f"/proc/{pids[0]}/fd", f"/proc/{pids[0]}/environ")
            seen = subprocess.run(looking, env=env, check=True, capture_output=True, text=True, cwd="/").stdout
            assert seen == ""
            outputs = []
            for user, run in zip(users, processes, strict=True):
                (user.home / "go").write_text("go")
                outputs.append(run.communicate(timeout=_SECONDS)[0])
        for output in outputs:
            assert "AssertionError: so that it leaves artefacts" in output
            assert "attempts           1 removed" in output
        left = subprocess.run(looking, env=env, check=True, capture_output=True, text=True, cwd="/").stdout
        assert list((users[0].home / "artefacts").rglob("console.txt"))
        assert left == ""

    @pytest.mark.parametrize("readable", [False, True], ids=["private", "readable"])
    def test_the_others_cache_is_refused_in_one_sentence(
        self, common_ground: Path, other_user: list[str], qemu_build: QemuBuild, guest_image: GuestImage, readable: bool
    ) -> None:
        one, other = User(common_ground / "one", os.getuid(), []), User(common_ground / "other", OTHER, other_user)
        one.stock(qemu_build, guest_image)
        if readable:
            for parent, _, _ in os.walk(one.cache):
                Path(parent).chmod(0o755)
        other.cache = one.cache
        (other.home / "test_it.py").write_text('def test_it(guest):\n    guest.run("true")\n')
        command, env = other.pytest(qemu_build, guest_image)
        with started(command, other.home, env) as process:
            output = process.communicate(timeout=_SECONDS)[0]
        # All of an image but its key may be read.
        told = f"{guest_image.directory.name}/client_key" if readable else f"cannot read the cache: {one.cache}"
        assert process.returncode != 0
        assert "Traceback" not in output
        said = [line for line in output.splitlines() if line.startswith(("E  ", "ERROR: "))]
        assert any(told in line and "Permission denied" in line for line in said), output

    def test_the_others_directory_for_sockets_is_refused_in_one_sentence(
        self, common_ground: Path, other_user: list[str], qemu_build: QemuBuild, guest_image: GuestImage
    ) -> None:
        other = User(common_ground / "other", OTHER, other_user)
        other.stock(qemu_build, guest_image)
        (other.home / "tmp" / f"pytest-spapr-{OTHER}").mkdir()
        command, env = other.pytest(qemu_build, guest_image)
        with started(command, other.home, env) as process:
            output = process.communicate(timeout=_SECONDS)[0]
        assert "Traceback" not in output
        assert f"pytest-spapr-{OTHER} is for lock files, but it is not a directory that is yours alone" in output
