"""The nightly on two hosts, through Avocado's remote spawner: two ssh servers on loopback."""

from __future__ import annotations

import json
import os
import select
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from ci.night.job import ROOT
from pytest_spapr.avocado.night import read_night
from pytest_spapr.cells import Cell
from pytest_spapr.images.keys import generate

from .shell_host import PROMPT, ShellHost
from .telling import awaited, named

_SECONDS = 90.0
_NAMES = ("first", "second")
#: Each ends when the other runs, says where it was, and fails.
_MEETS = """
import os
from pathlib import Path

def test_it_meets_the_other(launch_machine):
    assert launch_machine(image=None).status() == "running"
    {talk}
    print("ran on", os.environ["WHICH_HOST"])
    assert False
"""
_TALKS = {
    "a": "Path({there!r}).write_text('x'); Path({back!r}).read_text()",
    "b": "Path({there!r}).read_text(); Path({back!r}).write_text('x')",
}
_WAITS = """
import os
from pathlib import Path
from pytest_spapr.deadline import Deadline

def test_that_waits(launch_machine):
    machine = launch_machine(image=None)
    Path({told!r}).write_text(f"{{os.getpid()}} {{machine.process.pid}}")
    machine.timeline.wait(lambda record: None, since=0, deadline=Deadline(600), what="nothing")
"""


@dataclass
class Hosts:
    """Two hosts, and a nightly that has them. :ivar path: where its files are. :ivar env: the nightly's environment.

    :ivar temporary: where all have their temporary directories.
    """

    path: Path
    qemu: str
    words: list[str]
    env: dict[str, str]
    temporary: Path

    @contextmanager
    def started(self, *modules: str) -> Iterator[subprocess.Popen[str]]:
        matrix = self.path / "m.yaml"
        tests = ", ".join(str(self.path / module) for module in modules)
        matrix.write_text(f"tests: [{tests}]\nbuild: !mux\n  one:\n    qemu: '{self.qemu}'\n")
        command = [sys.executable, "-m", "ci.night", f"--matrix={matrix}", f"--results={self.path / 'r'}", "--without-sheet"]
        with subprocess.Popen(
            [*command, *self.words], cwd=ROOT, env=self.env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        ) as process:
            try:
                yield process
            finally:
                process.kill()

    def left(self) -> set[str]:
        """Return what is left in the temporary directories of all; the hosts keep a shell's history and the locks of their slots."""
        found = {path.name for name in (*_NAMES, "here") for path in (self.temporary / name).iterdir()}
        return found - {".bash_history", f"pytest-spapr-{os.getuid()}"}


@pytest.fixture
def hosts(one_cell: Cell, tmp_path: Path) -> Iterator[Hosts]:
    keys = generate()
    identity = tmp_path / "key"
    identity.touch(mode=0o600)
    identity.write_bytes(keys.client_private)
    words = [f"--setup=cd {shlex.quote(str(ROOT))} && export PATH={shlex.quote(str(Path(sys.executable).parent))}:$PATH"]
    with ExitStack() as made:
        # Names of sockets are short.
        temporary = Path(made.enter_context(tempfile.TemporaryDirectory()))
        (temporary / "here").mkdir()
        for name in _NAMES:
            home = temporary / name
            home.mkdir()
            env = {"WHICH_HOST": name, "TMPDIR": str(home), "SPAPR_CACHE_DIR": str(one_cell.settings.cache_dir.value)}
            host = ShellHost(keys, home, env)
            made.callback(host.close)
            login = {"client": "ssh", "host": "127.0.0.1", "port": str(host.port), "username": "anybody", "password": ""}
            slot = tmp_path / f"{name}.json"
            slot.write_text(json.dumps({**login, "prompt": f"^{PROMPT}$", "identity_file": str(identity)}))
            words.append(f"--slot={slot}")
        with socket.create_server(("127.0.0.1", 0)) as free:
            words.append(f"--status=127.0.0.1:{free.getsockname()[1]}")
        qemu = named(one_cell.build())
        yield Hosts(tmp_path, qemu, words, {**os.environ, "TMPDIR": str(temporary / "here")}, temporary)


def test_two_tasks_run_on_two_hosts_at_once(hosts: Hosts) -> None:
    """They fail, so that their artefacts come back."""
    places = {name: str(hosts.path / name) for name in ("there", "back")}
    for place in places.values():
        os.mkfifo(place)
    for name, talk in _TALKS.items():
        (hosts.path / f"test_{name}.py").write_text(_MEETS.format(talk=talk.format(**places)))
    with hosts.started("test_a.py", "test_b.py") as nightly:
        said = nightly.communicate(timeout=_SECONDS)[0]
    assert nightly.returncode == 1, said
    night = read_night(hosts.path / "r" / "latest")
    assert [task.status for task in night.tasks] == ["FAIL", "FAIL"], said
    logs = [(task.directory / "stdout").read_text() for task in night.tasks]
    assert sorted(name for log in logs for name in _NAMES if f"ran on {name}" in log) == ["first", "second"]
    assert all(list(task.directory.glob("artefacts/*/timeline.txt")) for task in night.tasks)
    assert hosts.left() == set()


def test_a_second_signal_ends_a_task_on_another_host(hosts: Hosts) -> None:
    """The first one says that it is to end by itself, which Avocado does not bring about there."""
    told = hosts.path / "told"
    os.mkfifo(told)
    (hosts.path / "test_waits.py").write_text(_WAITS.format(told=str(told)))
    with hosts.started("test_waits.py") as nightly:
        pids = [int(word) for word in awaited(told, nightly).split()]
        watched = [os.pidfd_open(pid) for pid in pids]
        nightly.send_signal(signal.SIGTERM)
        assert nightly.stdout is not None
        # Two that come at once are one.
        assert any("once more" in line for line in nightly.stdout)
        nightly.send_signal(signal.SIGTERM)
        # Before the last resort.
        said = nightly.communicate(timeout=_SECONDS / 2)[0]
    try:
        assert all(select.select([one], [], [], _SECONDS)[0] for one in watched)
    finally:
        for one in watched:
            os.close(one)
    assert nightly.returncode == 130, said
    assert "tasks: 1 NOT RUN" in said
