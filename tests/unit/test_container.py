"""Tasks in containers, with a podman that is none: what it is asked for, and words for what cannot be run."""

from __future__ import annotations

import os
import resource
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from ci.night import __main__ as nightly
from pytest_spapr.avocado.container import IMAGE, MOUNTS, Container
from pytest_spapr.avocado.kept import KeeperDied, Kept, new_scratch

_SECONDS = 20.0
#: It says what it was asked for, and then is {image} for `podman image`, {run} for `podman run`.
_PODMAN = """#!/bin/sh
echo "$*" >>{asked}
case $1 in
image) {image} ;;
run)
    while test "$1" != an-image; do shift; done
    shift
    {run} ;;
esac
"""
_RUNS = f'exec {sys.executable} "$@"'


@pytest.fixture
def asked(tmp_path: Path) -> Path:
    return tmp_path / "asked"


@pytest.fixture
def fake(tmp_path: Path, asked: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    programs = tmp_path / "bin"
    programs.mkdir()
    monkeypatch.setenv("PATH", f"{programs}:/usr/bin:/bin")
    monkeypatch.setenv("SPAPR_CACHE_DIR", str(tmp_path / "cache"))

    def make(*, image: str = "exit 0", run: str = _RUNS) -> None:
        file = programs / "podman"
        file.write_text(_PODMAN.format(asked=asked, image=image, run=run))
        file.chmod(0o755)

    return make


def run(tmp_path: Path, *more: str) -> int:
    return nightly.main([f"--results={tmp_path / 'results'}", "--podman=an-image", *more])


class TestWordsForWhatCannotBeRun:
    @pytest.mark.parametrize(
        ("podman", "words"),
        [
            ({"image": "exit 1"}, "no such image (podman images). `podman pull` gets one, ci/container-image makes one"),
            ({"image": "echo no storage >&2; exit 125"}, "podman does not work here: no storage."),
            ({"run": "echo no cgroups >&2; exit 125"}, "podman cannot run a container of it: no cgroups."),
            ({"run": "echo no such program >&2; exit 127"}, f"{sys.executable} does not start in it: no such program."),
            ({"run": "echo '[3, 9]'; exit 1"}, "it has Python 3.9. The virtual environment"),
            (
                {"run": f"echo '[{sys.version_info[0]}, {sys.version_info[1]}]'; echo ImportError >&2; exit 1"},
                "the suite cannot be imported in it: ImportError.",
            ),
        ],
    )
    def test_of_podman_and_the_image(
        self, tmp_path: Path, fake: Callable[..., None], capfd: pytest.CaptureFixture[str], podman: dict[str, str], words: str
    ) -> None:
        fake(**podman)
        assert run(tmp_path) == 2
        told = capfd.readouterr().err
        assert told.startswith("ci/nightly: --podman=an-image: ")
        assert words in told
        assert not (tmp_path / "results" / "latest").exists()

    def test_an_old_installation(
        self, tmp_path: Path, fake: Callable[..., None], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
    ) -> None:
        fake()
        monkeypatch.setattr("pytest_spapr.avocado.container.entry_points", lambda group: SimpleNamespace(names={"other"}))
        assert run(tmp_path) == 2
        assert "--podman: the package was installed before it knew of containers." in capfd.readouterr().err

    def test_no_podman(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
        monkeypatch.setenv("PATH", str(tmp_path))
        assert run(tmp_path) == 2
        assert "there is no podman on PATH. Install it" in capfd.readouterr().err

    @pytest.mark.parametrize(
        ("more", "words"),
        [
            (["--mount=/nonesuch"], "--mount=/nonesuch: there is no such directory"),
            (["--slot=any.json"], "--podman and --slot: "),
            (["--podman=", "--mount=/tmp"], "--mount: only tasks in containers need it, with --podman=IMAGE"),
        ],
    )
    def test_of_options(
        self, tmp_path: Path, fake: Callable[..., None], capfd: pytest.CaptureFixture[str], more: list[str], words: str
    ) -> None:
        fake()
        if "--slot=any.json" in more:
            (tmp_path / "any.json").write_text("{}")
            more = [f"--slot={tmp_path / 'any.json'}", "--status=a:1"]
        assert run(tmp_path, *more) == 2
        assert words in capfd.readouterr().err

    @pytest.mark.parametrize(
        ("matrix", "words"),
        [
            (
                "tests: ['{0}/test_it.py']\nbuild: !mux\n  one:\n    qemu: '7.2'\n",
                "tests: {0}/test_it.py is not in the containers",
            ),
            ("tests: [tests/hotplug/test_cores.py]\nbuild: !mux\n  one:\n    qemu: '{0}/qemu'\n", "qemu: {0}/qemu is not in the"),
        ],
    )
    def test_of_files_that_containers_have_not(
        self,
        tmp_path: Path,
        fake: Callable[..., None],
        monkeypatch: pytest.MonkeyPatch,
        capfd: pytest.CaptureFixture[str],
        matrix: str,
        words: str,
    ) -> None:
        fake()
        scratch, mine = tmp_path / "tmp", tmp_path / "mine"
        scratch.mkdir()
        mine.mkdir()
        (mine / "test_it.py").touch()
        (mine / "qemu").touch()
        monkeypatch.setattr(tempfile, "tempdir", str(scratch))
        file = tmp_path / "m.yaml"
        file.write_text(matrix.format(mine))
        assert run(tmp_path, f"--matrix={file}") == 2
        told = capfd.readouterr().err
        assert words.format(mine) in told
        assert "add --mount=DIR" in told


def test_tasks_have_containers_where_the_settings_name_an_image() -> None:
    assert Container.of({IMAGE: "", MOUNTS: []}) is None
    assert Container.of({IMAGE: "an-image", MOUNTS: ["/a"]}) == Container(image="an-image", mounts=("/a",))


def test_a_container_has_what_tasks_need(tmp_path: Path, fake: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    words = Container(image="an-image", mounts=["/mnt/a", "/mnt/a/b"]).words("me")
    volumes = [word.removeprefix("--volume=").partition(":")[0] for word in words if word.startswith("--volume=")]
    for path in (Path.cwd(), Path(sys.prefix), tmp_path / "cache", Path(tempfile.gettempdir()), Path("/mnt/a/b")):
        assert any(path.is_relative_to(volume) for volume in volumes), path
    assert "/mnt/a/b" not in volumes
    assert "/usr" not in volumes
    assert {
        f"--env=SPAPR_CACHE_DIR={tmp_path / 'cache'}",
        f"--env=TMPDIR={tempfile.gettempdir()}",
        f"--workdir={Path.cwd()}",
    } <= {*words}
    assert f"--ulimit=nofile={':'.join(map(str, resource.getrlimit(resource.RLIMIT_NOFILE)))}" in words
    assert ("--userns=keep-id" in words) == bool(os.getuid())
    monkeypatch.setattr(os, "getuid", lambda: 1000)
    assert "--userns=keep-id" in Container(image="an-image").words("me")


def test_a_command_runs_in_a_container_which_is_gone_then(tmp_path: Path, fake: Callable[..., None], asked: Path) -> None:
    fake()
    container = Container(image="an-image")
    with Kept([sys.executable, "-c", "print('here'); exit(3)"], new_scratch(), tmp_path / "log", 1.0, container) as kept:
        assert kept.ended(_SECONDS)
        assert kept.status() == 3
    assert (tmp_path / "log").read_text() == "here\n"
    ran, removed = asked.read_text().splitlines()
    (name,) = (word.partition("=")[2] for word in ran.split() if word.startswith("--name="))
    assert name.startswith(f"spapr-night-{os.getpid()}-")
    assert removed == f"rm --force --ignore --time=0 {name}"


def test_a_container_that_ends_before_its_command_is_told(tmp_path: Path, fake: Callable[..., None]) -> None:
    fake(run="echo no space >&2; exit 125")
    with Kept(["true"], new_scratch(), tmp_path / "log", 1.0, Container(image="an-image")) as kept:
        assert kept.ended(_SECONDS)
        with pytest.raises(KeeperDied, match="podman ended with status 125 before the command in its container did"):
            kept.status()
    assert (tmp_path / "log").read_text() == "no space\n"
