"""Avocado, as the nightly runs it."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from configparser import RawConfigParser
from dataclasses import dataclass
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Final, NamedTuple

from pytest_spapr.avocado import OUR_SPAWNER
from pytest_spapr.avocado.container import Container
from pytest_spapr.avocado.kept import new_scratch
from pytest_spapr.avocado.matrix import Matrix
from pytest_spapr.errors import ConfigError, SpaprError
from pytest_spapr.qemu import bound

ROOT: Final = Path(__file__).parents[2]
#: For a cell that is given up: its machines have to end.
_SOFT_SECONDS: Final = 60
_HARD_SECONDS: Final = 10
_LAST_SECONDS: Final = _SOFT_SECONDS + 2 * _HARD_SECONDS
_ASKED: Final = f"\nci/nightly: asked to end: each task has {_SOFT_SECONDS} s for it; once more, and it ends at once\n".encode()
#: Avocado with a directory for its own temporary files, some of which it and aexpect leave. Its tasks have the host's.
_WITHIN: Final = "import sys, tempfile; tempfile.tempdir = sys.argv.pop(1); from avocado.core.main import main; sys.exit(main())"
_DRAWS: Final = 20
#: How Avocado calls it below its directory for temporary files, and how long a name may be (unix(7)).
_SOCKET: Final = "/avocado_12345678/.status_server.sock"
_LONGEST_SOCKET: Final = 107
#: Avocado's link to the newest job.
_LATEST: Final = "latest"


class AvocadoFailed(SpaprError):
    """Avocado ended without a job."""


class Job(NamedTuple):
    """A job that has ended. :ivar directory: where its results are. :ivar interrupted: whether it was not to run to its end."""

    directory: Path
    interrupted: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Hosts:
    """Other hosts that tasks run on. :ivar slots: a file for each task that may run at once, with the arguments of aexpect's login.

    :ivar status: HOST:PORT of this host, where tasks tell how they go. :ivar setup: a shell command there before each task.
    """

    slots: Sequence[Path]
    status: str
    setup: str

    def settings(self) -> dict[str, dict[str, Any]]:
        """Return Avocado's settings. How long a task may take is kept by its runner: Avocado cannot end it there."""
        return {
            "run": {"status_server_auto": False, "status_server_listen": self.status, "status_server_uri": self.status},
            "spawner.remote": {"slots": [str(slot) for slot in self.slots], "setup_hook": self.setup},
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class Avocado:
    """Avocado with the nightly's settings. :ivar results: where jobs leave their directories. :ivar timeout: seconds of one task.

    :ivar jobs: how many tasks run at once. :ivar container: what each task's pytest has a container of, if any. :ivar hosts: other hosts
        that they run on, if any.
    """

    results: Path
    timeout: int
    jobs: int
    container: Container | None = None
    hosts: Hosts | None = None

    def run(self, matrix: Sequence[str], tests: Sequence[str]) -> Job:
        """Run the tests in each cell. Ctrl-C and SIGTERM end it in good order.

        :param matrix: options of ``avocado run`` that name the variants. :raises AvocadoFailed: there was no job.
        """
        return self._job(["run", *matrix, "--", *(f"spapr:{test}" for test in tests)])

    def replay(self, job: str) -> Job:
        """Run again what was not fine in a job. :param job: its directory, id or ``latest``.

        :raises AvocadoFailed: there was no job.
        """
        latest = self.results / _LATEST
        # By the time that Avocado looks at it, it is the new one.
        return self._job(["replay", str(latest.resolve()) if job == _LATEST and latest.exists() else job])

    def pairs(self, matrix: Matrix) -> Path:
        """Return a file with variants such that each pair of names of two axes is in one. They stay the same while the names do.

        :raises ConfigError: see ``Matrix.as_cit``.
        """
        text = matrix.as_cit()
        # Nights are to be compared: lots are drawn once.
        stem = f"pairs-{matrix.file.stem}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"
        drawn, file = self.results / f"{stem}.drawn.json", self.results / f"{stem}.json"
        if not drawn.exists():
            self._draw(matrix, text, drawn)
        file.write_text(json.dumps(matrix.chosen(json.loads(drawn.read_text(encoding="utf-8")))), encoding="utf-8")
        return file

    def _draw(self, matrix: Matrix, text: str, drawn: Path) -> None:
        names, new = drawn.with_suffix(".cit"), drawn.with_suffix(".new")
        names.write_text(text, encoding="utf-8")
        for _ in range(_DRAWS):
            self._ask(["variants", "--cit-parameter-file", str(names), "--json-variants-dump", str(new)])
            # That of 113 sometimes ends with an IndexError or a ValueError, told on stderr alone, and there are no variants.
            if not matrix.lacks(json.loads(new.read_text(encoding="utf-8"))):
                new.rename(drawn)
                return
        raise AvocadoFailed(f"Avocado's varianter cit found no cells for all pairs of {matrix.file} in {_DRAWS} tries.")

    def diff(self, before: Path, after: Path, page: Path) -> str:
        """Return how the results of two jobs differ, as text, nothing where they do not; the same goes to an HTML page."""
        words = ["diff", "--diff-strip-id", "--diff-filter", "results", str(before), str(after)]
        self._ask([*words, "--html", str(page)])
        return self._ask(words)

    def _job(self, words: Sequence[str]) -> Job:
        latest = self.results / _LATEST
        before = latest.readlink() if latest.is_symlink() else None
        scratch = new_scratch()
        try:
            _require_short(scratch)
            # aexpect looks at the variable. Where it is not set, Avocado has its tasks on /var/tmp, away from the slots of other runs.
            temporary = scratch if self.hosts else Path(tempfile.gettempdir())
            # aexpect looks for a helper of its own there, which stands beside Python where no environment was activated.
            path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
            env = {"TMPDIR": str(temporary), "PATH": path}
            status, interrupted = _until_ended(self._command(words, "-c", _WITHIN, str(scratch)), env)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
        after = latest.readlink() if latest.is_symlink() else None
        if after is None or after == before:
            raise AvocadoFailed(f"Avocado ended with status {status} before it had a job: what it said stands above.")
        return Job(self.results / after, interrupted)

    def _ask(self, words: Sequence[str]) -> str:
        done = subprocess.run(self._command(words), capture_output=True, text=True, cwd=ROOT, check=False)
        if done.returncode:
            raise AvocadoFailed(f"`avocado {words[0]}` ended with status {done.returncode}: {done.stderr or done.stdout}")
        return done.stdout

    def _command(self, words: Sequence[str], *how: str) -> list[str]:
        return [sys.executable, *(how or ("-m", "avocado")), "--config", str(self._settings()), *words]

    def _settings(self) -> Path:
        """Write Avocado's settings, and return their file."""
        data = self.results / "data"
        spawner = "remote" if self.hosts else OUR_SPAWNER
        settings = RawConfigParser()
        settings.read_dict(
            {
                # Nothing below the user's home.
                "datadir.paths": dict.fromkeys(("base_dir", "data_dir", "test_dir"), data) | {"logs_dir": self.results},
                "run": {"max_parallel_tasks": self.jobs, "spawner": spawner},
                "task.timeout": {"running": self.timeout},
                "runner.task.interval": {
                    "from_soft_to_hard_termination": _SOFT_SECONDS,
                    "from_hard_termination_to_verification": _HARD_SECONDS,
                },
                "sysinfo.collectibles": {"commands": ROOT / "ci" / "sysinfo"},
            }
        )
        if self.container:
            settings.read_dict(
                {"spapr.podman": {"image": self.container.image, "mounts": [str(self.results), *self.container.mounts]}}
            )
        if self.hosts:
            settings.read_dict(self.hosts.settings())
        data.mkdir(parents=True, exist_ok=True)
        file = self.results / "avocado.conf"
        with file.open("w", encoding="utf-8") as stream:
            settings.write(stream)
        return file


def _until_ended(command: Sequence[str], env: Mapping[str, str]) -> tuple[int, bool]:
    """Run a command to its end, in the checkout; return its status, and whether it was interrupted.

    SIGINT and SIGTERM become SIGINT for it, a second one SIGTERM.
    On SIGINT Avocado gives its tasks time to end, on SIGTERM it kills them. It dies with this process.
    """
    words = [sys.executable, "-I", "-S", bound.__file__, str(os.getpid()), *command]
    # A shell's background job ignores SIGINT, and so would Avocado; a handler becomes the default in a new program.
    with (
        _Forwarded() as forwarded,
        subprocess.Popen(words, cwd=ROOT, env={**os.environ, **env}, start_new_session=True) as process,
    ):
        forwarded.to = process
        return process.wait(), forwarded.came


class _Forwarded:
    """Hands signals on, inside a ``with`` block. :ivar to: the process that gets them. :ivar came: whether any came."""

    def __init__(self) -> None:
        self.came = False
        self.to: subprocess.Popen[bytes] | None = None
        # Avocado 113 never ends on SIGINT while a task runs on another host: it waits for it to be among those that it can give up.
        self._last_resort = threading.Timer(_LAST_SECONDS, self._terminate)
        self._before: dict[int, Any] = {}

    def __enter__(self) -> _Forwarded:
        self._before = {number: signal.signal(number, self._hand_on) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._last_resort.cancel()
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _hand_on(self, _number: int, _frame: FrameType | None) -> None:
        self.came = True
        if self.to is None:
            return
        if self._last_resort.is_alive():
            self._terminate()
        else:
            self.to.send_signal(signal.SIGINT)
            self._last_resort.start()
            # Not by a stream's own writing, which a handler must not enter again.
            os.write(sys.stderr.fileno(), _ASKED)

    def _terminate(self) -> None:
        if self.to is not None:
            self.to.terminate()


def _require_short(scratch: Path) -> None:
    """Check that Avocado can have its socket there. :raises ConfigError: it cannot; its tasks could tell nobody how they go."""
    over = len(os.fsencode(scratch)) + len(_SOCKET) - _LONGEST_SOCKET
    if over > 0:
        temporary = tempfile.gettempdir()
        raise ConfigError(
            f"{temporary} is too long a name for Avocado's socket: set TMPDIR to a directory of at most {len(temporary) - over} bytes."
        )
