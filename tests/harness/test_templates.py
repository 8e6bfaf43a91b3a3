"""Whole pytest runs that make and use templates, and what becomes of them when things go wrong."""

from __future__ import annotations

import os
import select
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pytest_spapr import GuestImage, QemuBuild
from pytest_spapr.rig import RIG
from pytest_spapr.templates import store

_SECONDS = 300.0
_MAKING = "making the template of such machines"
#: A line of the summary.
_BOOTED = "booted, not cloned "
_SHARED = ("qemu", "probes")


class Run:
    """Starts pytest with a test or two in processes of their own, with a cache of their own."""

    def __init__(self, directory: Path, cache: Path, options: list[str]) -> None:
        self.directory = directory
        self.cache = cache
        self.options = options

    def command(self) -> list[str]:
        plain = ["-p", "no:cacheprovider", f"--rootdir={self.directory}", "--spapr-artefacts=artefacts"]
        return [sys.executable, "-m", "pytest", *plain, *self.options]

    @contextmanager
    def started(self) -> Iterator[subprocess.Popen[str]]:
        # Slots of its own: a run that waits for others' machines does not wait for a template meanwhile.
        apart = {"SPAPR_CACHE_DIR": str(self.cache), "TMPDIR": str(self.directory)}
        environment = {**os.environ, **apart, "PYTHONUNBUFFERED": "1"}
        with subprocess.Popen(
            self.command(), cwd=self.directory, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        ) as process:
            try:
                yield process
            finally:
                process.kill()

    def output(self) -> str:
        """Run the tests, which pass, and return what pytest wrote."""
        with self.started() as process:
            output, _ = process.communicate(timeout=_SECONDS)
        assert process.returncode == 0, output
        return output

    def templates(self) -> list[Path]:
        return list((self.cache / store.KIND).glob("*"))


def said(process: subprocess.Popen[str], wanted: str) -> str:
    """Read what a run says up to a line with these words; return all of it."""
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line)
        if wanted in line:
            return "".join(lines)
    raise AssertionError(f"the run never said {wanted!r}:\n{''.join(lines)}")


def rows(output: str) -> list[str]:
    return [line for line in output.splitlines() if line.startswith(_BOOTED)]


@pytest.fixture
def run(pytester: pytest.Pytester, request: pytest.FixtureRequest, qemu_build: QemuBuild, guest_image: GuestImage) -> Run:
    """A run with the same QEMU and image as this one."""
    shared = request.config.stash[RIG].settings.cache_dir.value
    cache = pytester.mkdir("cache")
    for name in _SHARED:
        (cache / name).symlink_to(shared / name)
    pytester.makepyfile(
        """
        def test_one(guest): assert guest.run("uname -m").stdout == "ppc64le\\n"
        def test_two(guest): assert guest.run("uname -m").stdout == "ppc64le\\n"
        """
    )
    named = f"--spapr-qemu={qemu_build.name}"
    return Run(pytester.path, cache, [named, f"--spapr-image={guest_image.directory}", "--spapr-offline"])


def children_of(process: subprocess.Popen[str]) -> list[int]:
    """Return the processes that this one, or any of its threads, started."""
    threads = Path(f"/proc/{process.pid}/task").glob("*/children")
    return [int(pid) for listed in threads for pid in listed.read_text().split()]


def test_two_runs_make_one_template(run: Run) -> None:
    with run.started() as first:
        said(first, _MAKING)
        with run.started() as second:
            said(second, "waiting for another run that holds template-")
            rest, _ = second.communicate(timeout=_SECONDS)
        output, _ = first.communicate(timeout=_SECONDS)
    assert (first.returncode, second.returncode) == (0, 0), output + rest
    assert _MAKING not in rest
    assert " cloned" in rest
    assert rows(output + rest) == []
    assert len(run.templates()) == 1


def test_a_run_that_is_killed_while_it_makes_one_leaves_no_qemu_and_the_next_one_makes_it(run: Run) -> None:
    with run.started() as first:
        said(first, _MAKING)
        ram = None
        while ram is None:
            assert first.poll() is None
            ram = next((run.cache / "tmp").glob("*/new/ram"), None)
        children = [os.pidfd_open(pid) for pid in children_of(first)]
        assert children
        first.kill()
        first.wait(10)
        for child in children:
            assert select.select([child], [], [], 10)[0], "its QEMU lives on"
            os.close(child)
    assert run.templates() == []
    assert ram.exists()
    output = run.output()
    assert _MAKING in output
    assert rows(output) == []
    assert not ram.exists(), "what it left is swept"
    assert len(run.templates()) == 1


def test_a_damaged_template_is_made_anew(run: Run) -> None:
    assert _MAKING in run.output()
    [template] = run.templates()
    os.truncate(template / store.DEVICES, 1000)
    output = run.output()
    assert _MAKING in output
    assert rows(output) == []
    assert run.templates() == [template]


class Small(Run):
    """A run whose cache is a file system of its own.

    :ivar size: its bytes, as ``mount`` wants them. :ivar mode: how it is mounted at last: ``rw`` or ``ro``.
    """

    # QEMU starts in it (kernel and initramfs have 71 MB), and the guest does not boot.
    size = "96M"
    mode = "rw"

    def command(self) -> list[str]:
        real = {name: (self.cache / name).readlink() for name in _SHARED}
        links = " && ".join(f"ln -s '{target}' '{self.cache}/{name}'" for name, target in real.items())
        # Of this mount, not of its file system: that has its owner among its options, by a number that the namespace may not know.
        last = f"mount -o remount,bind,{self.mode} '{self.cache}'"
        script = f"mount -t tmpfs -o size={self.size},mode=700 none '{self.cache}' && {links} && {last} && exec \"$@\""
        return ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script, "sh", *super().command()]


@pytest.fixture
def small(run: Run, unprivileged_mounts: None) -> Small:
    return Small(run.directory, run.cache, run.options)


def test_a_file_system_that_is_too_small_is_told_once_and_machines_are_booted(small: Small) -> None:
    output = small.output()
    [row] = rows(output)
    assert row.startswith(f"{_BOOTED}2: a template needs up to 1073.7 MB in {small.cache}, which has less left: free some, or ")
    assert "2 booted in " in output


def test_a_file_system_that_fills_up_while_it_is_written_is_told_the_same_way(small: Small, pytester: pytest.Pytester) -> None:
    """Nobody can say beforehand what others will write: QEMU is killed for touching memory that has no page."""
    pytester.makeconftest("from pytest_spapr.templates import make\nmake._require_space = lambda plan: None")
    output = small.output()
    assert _MAKING in output
    [row] = rows(output)
    assert row.startswith(f"{_BOOTED}2: a template needs up to 1073.7 MB in {small.cache}, which has less left: free some, or ")
    assert "SIGBUS" not in output


def test_a_cache_that_cannot_be_written_is_told_once_and_machines_are_booted(small: Small) -> None:
    small.mode = "ro"
    [row] = rows(small.output())
    assert row.startswith(f"{_BOOTED}2: cannot write to the cache: {small.cache}")
    assert row.endswith("Set SPAPR_CACHE_DIR to a directory that you may write to.")


def test_a_probe_that_fails_is_remembered_until_it_is_to_be_tried_again(
    run: Run, pytester: pytest.Pytester, spapr: Callable[..., str]
) -> None:
    conftest = pytester.makeconftest(
        """
        from pytest_spapr.templates import make

        def fail(machine):
            raise AssertionError("it hangs")

        make._typical_device = fail
        """
    )
    output = run.output()
    [row] = rows(output)
    assert row.startswith(f"{_BOOTED}2: a clone of such a machine is unsound: it hangs (`spapr template remove ")
    conftest.unlink()
    again = run.output()
    assert rows(again) == [row]
    assert _MAKING not in again
    spapr(*row.partition("`")[2].partition("`")[0].split()[1:])
    last = run.output()
    assert _MAKING in last
    assert rows(last) == []


@pytest.fixture
def spapr(run: Run) -> Callable[..., str]:
    """The command."""

    def call(*words: str) -> str:
        program = "import sys; from pytest_spapr.cli import main; sys.exit(main(sys.argv[1:]))"
        command = [sys.executable, "-c", program, *words, "--cache-dir", str(run.cache)]
        return subprocess.run(command, check=True, text=True, stdout=subprocess.PIPE).stdout

    return call
