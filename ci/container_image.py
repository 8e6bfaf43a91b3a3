"""Makes a container image for ``ci/nightly --podman``: packages of the Debian release whose Python is that of the virtual environment.

They come from the mirror that guest images come from, checked as those, and are unpacked over each other. No maintainer script runs, and
none is needed for what the suite starts.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from ci.command import ended, progress_shown
from pytest_spapr import config
from pytest_spapr.avocado.container import podman, require_podman
from pytest_spapr.builds.store import architecture
from pytest_spapr.cache import Cache
from pytest_spapr.debian.apt import AptState
from pytest_spapr.debian.mirror import mirror_of
from pytest_spapr.errors import ConfigError
from pytest_spapr.images import rootfs
from pytest_spapr.images.cpio import file
from pytest_spapr.progress import Progress

_SUITES: Final = {(3, 11): "bookworm", (3, 13): "trixie"}
#: What tests start, and a shell for whoever looks into it.
_PACKAGES: Final = (
    *("base-files", "bash", "coreutils", "dash", "findutils", "grep", "sed", "util-linux", "procps", "python3"),
    *("apt", "debian-archive-keyring", "dpkg", "gzip", "openssh-client", "zstd"),
)
_EXCLUDED: Final = ("usr/share/doc/*", "usr/share/man/*", "usr/share/locale/*", "usr/share/lintian/*")
#: base-passwd's script would make them.
_OWN: Final = {
    "etc/passwd": file(b"root:x:0:0:root:/root:/bin/bash\nnobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n"),
    "etc/group": file(b"root:x:0:\nnogroup:x:65534:\n"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Make the image and return the exit status: 2 where it cannot be made."""
    parser = argparse.ArgumentParser(
        prog="ci/container-image",
        description="Make a container image for ci/nightly --podman, of Debian's packages.",
        epilog="Exit status: 0, or 2 where it cannot be made.",
    )
    parser.add_argument("name", nargs="?", default="pytest-spapr", help="what podman is to call it (default: %(default)s)")
    name: str = parser.parse_args(argv).name
    return ended("ci/container-image", lambda: _make(name))


def _make(name: str) -> int:
    require_podman()
    version = sys.version_info[:2]
    if version not in _SUITES:
        known = ", ".join(f"{suite} has {major}.{minor}" for (major, minor), suite in _SUITES.items())
        raise ConfigError(
            f"no Debian release that is known has Python {version[0]}.{version[1]} ({known}): bring an image of your own."
        )
    with progress_shown() as progress, tempfile.TemporaryDirectory() as scratch:
        archive = Path(scratch, "root.tar")
        _write(archive, _SUITES[version], progress)
        progress.phase("podman takes it")
        _import(archive, name)
    sys.stdout.write(f"{name}: Debian {_SUITES[version]}. ci/nightly --podman={name}\n")
    return 0


def _write(archive: Path, suite: str, progress: Progress) -> None:
    settings = config.read({})
    cache, native = Cache(settings.cache_dir.value), architecture()
    mirror = mirror_of(settings, "the container image", "Run ci/container-image")
    apt = AptState(cache, mirror, [suite], native, progress)
    with cache.lock(apt.name, progress):
        debs = list(apt.fetch(_PACKAGES).values())
        progress.phase("unpacking packages")
        rootfs.write(archive, debs, _EXCLUDED, _OWN, native, progress)


def _import(archive: Path, name: str) -> None:
    """:raises ConfigError: podman cannot take it."""
    before = podman("image", "inspect", "--format={{.Id}}", name)
    done = podman("import", "--quiet", '--change=CMD ["/bin/bash"]', str(archive), name)
    if done.returncode:
        raise ConfigError(f"podman import ended with status {done.returncode}: {done.stderr.strip()}")
    if not before.returncode:
        # It has lost its name. A container may have it yet.
        podman("image", "rm", before.stdout.strip())


if __name__ == "__main__":
    sys.exit(main())
