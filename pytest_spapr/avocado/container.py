"""Tasks in containers: a task's command, and the keeper that answers for it, run in one, its runner does not.

A container has files of its own, and nothing else: the checkout, the virtual environment, the cache and the directory for temporary
files are the host's, at their own paths, as are processes, network and devices. So whatever holds between tasks of a host, the locks of
slots first of all, holds between containers, and a keeper leaves as little behind as outside one.

Avocado 113 has a podman spawner, which is of no use here: it puts an Avocado of its own into each container, fetched from the network,
where our runners are not; the checkout and the cache are not there either, and it can be told of no other mounts; containers stay after
their tasks, and images after their dependencies.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Final

import pytest_spapr
from pytest_spapr import config
from pytest_spapr.errors import ConfigError

#: Avocado's settings for it: the image, and more directories.
IMAGE: Final = "spapr.podman.image"
MOUNTS: Final = "spapr.podman.mounts"

_PODMAN: Final = "podman"
#: Its exit status where it fails by itself.
_PODMAN_FAILED: Final = 125
#: The image brings it; a container's would hide it.
_OF_IMAGE: Final = Path("/usr")
_VERSION: Final = sys.version_info[:2]
_ASK: Final = "import json, sys; print(json.dumps(sys.version_info[:2]), flush=True); import pytest, pytest_spapr.plugin"
#: podman gives itself no more processes, and where it lacks CAP_SYS_RESOURCE a container cannot have more than it has.
_PROCESSES: Final = 32768


@dataclass(frozen=True, kw_only=True, slots=True)
class Container:
    """What each task has a container of. :ivar image: its name. :ivar mounts: directories it has at the same path, besides our own."""

    image: str
    mounts: Sequence[str] = ()

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> Container | None:
        """Return what Avocado's settings say, None where tasks have no containers."""
        return cls(image=settings[IMAGE], mounts=tuple(settings[MOUNTS] or ())) if settings[IMAGE] else None

    def words(self, name: str) -> list[str]:
        """Return a command that runs a Python of ours in a new container; its arguments are to follow. :param name: the container's."""
        # An ordinary user stays who it is, and in its groups: /dev/kvm is one's.
        own = ["--userns=keep-id", "--group-add=keep-groups"] if os.getuid() else []
        limits = {"nofile": (resource.RLIMIT_NOFILE, None), "nproc": (resource.RLIMIT_NPROC, _PROCESSES)}
        return [
            *(_PODMAN, "run", "--rm", "--interactive", f"--name={name}", "--pull=never", "--log-driver=none"),
            # Devices (KVM, VFIO), and no labels that keep a container from the host's files.
            *("--privileged", "--pid=host", "--network=host", "--pids-limit=-1", *own),
            *(f"--ulimit={limit}={_limit(number, most)}" for limit, (number, most) in limits.items()),
            *(f"--volume={path}:{path}" for path in self.places()),
            *(
                f"--env={variable}"
                for variable in ("SPAPR_*", "PYTEST_*", f"SPAPR_CACHE_DIR={_cache()}", f"TMPDIR={_temporary()}")
            ),
            *(f"--workdir={Path.cwd()}", f"--entrypoint={json.dumps([sys.executable])}", self.image),
        ]

    def places(self) -> list[Path]:
        """Return what the container has of the host's files, each with all below it."""
        package = Path(pytest_spapr.__file__).parents[1]
        prefixes = [path for path in (Path(sys.prefix), Path(sys.base_prefix)) if path != _OF_IMAGE]
        paths = [Path.cwd(), package, *prefixes, _cache(), _temporary(), Path("/dev/shm"), *map(Path, self.mounts)]  # noqa: S108
        return _topmost(paths)

    def sees(self, path: Path) -> bool:
        """Return whether the container has this file of the host's."""
        return any(path.is_relative_to(place) for place in self.places())

    def remove(self, name: str) -> None:
        """Remove a container, if it is there still: of a podman that was killed."""
        podman("rm", "--force", "--ignore", "--time=0", name)

    def require(self) -> None:
        """Check that tasks can be run in it. :raises ConfigError: they cannot."""
        require_podman()
        # A checkout that was installed before has not: Avocado would know of no image, and run its tasks outside.
        if "spapr" not in entry_points(group="avocado.plugins.init").names:
            raise ConfigError("--podman: the package was installed before it knew of containers. Install it again (ci/setup).")
        for mount in self.mounts:
            if not Path(mount).is_dir():
                raise ConfigError(f"--mount={mount}: there is no such directory.")
        done = podman("image", "exists", self.image)
        if done.returncode == 1:
            who = "you have" if os.getuid() else "root has"
            raise ConfigError(
                f"--podman={self.image}: {who} no such image (podman images). `podman pull` gets one, ci/container-image makes one."
            )
        if done.returncode:
            raise ConfigError(f"--podman={self.image}: podman does not work here: {_last(done.stderr)}.")
        self._require_python()

    def _require_python(self) -> None:
        words = [*self.words(f"spapr-night-{os.getpid()}-asked"), "-c", _ASK]
        done = subprocess.run(words, check=False, capture_output=True, text=True, stdin=subprocess.DEVNULL)
        if not done.returncode:
            return
        if done.returncode == _PODMAN_FAILED:
            raise ConfigError(f"--podman={self.image}: podman cannot run a container of it: {_last(done.stderr)}.")
        needed = f"Python {_VERSION[0]}.{_VERSION[1]} at {Path(sys.executable).resolve()}"
        if Path(sys.base_prefix) != _OF_IMAGE:
            needed = f"the libraries that {Path(sys.executable).resolve()} is linked with"
        wanted = f"The virtual environment {sys.prefix} needs an image with {needed}; ci/container-image makes one."
        if not done.stdout:
            raise ConfigError(f"--podman={self.image}: {sys.executable} does not start in it: {_last(done.stderr)}. {wanted}")
        found = tuple(json.loads(done.stdout.splitlines()[0]))
        if found != _VERSION:
            raise ConfigError(f"--podman={self.image}: it has Python {found[0]}.{found[1]}. {wanted}")
        raise ConfigError(f"--podman={self.image}: the suite cannot be imported in it: {_last(done.stderr)}.")


def podman(*words: str) -> subprocess.CompletedProcess[str]:
    """Return what podman says, and with which status."""
    return subprocess.run([_PODMAN, *words], check=False, capture_output=True, text=True)


def require_podman() -> None:
    """:raises ConfigError: there is none."""
    if shutil.which(_PODMAN) is None:
        raise ConfigError("there is no podman on PATH. Install it (Debian: sudo apt-get install podman).")


def _topmost(paths: Iterable[Path]) -> list[Path]:
    every = list(dict.fromkeys(path.absolute() for path in paths))
    return [path for path in every if not any(other != path and path.is_relative_to(other) for other in every)]


def _limit(number: int, most: int | None) -> str:
    """Return a limit of this process for podman. What that one sets by itself may be more than is allowed."""
    found = [value if most is None or 0 <= value < most else most for value in resource.getrlimit(number)]
    return ":".join(map(str, found))


def _cache() -> Path:
    path = Path(config.read({}).cache_dir.value).absolute()
    # podman mounts what is there.
    path.mkdir(parents=True, exist_ok=True)
    return path


def _temporary() -> Path:
    return Path(tempfile.gettempdir()).absolute()


def _last(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[-1].rstrip(".") if lines else "it does not say why"
