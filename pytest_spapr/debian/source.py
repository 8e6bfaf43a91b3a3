"""Debian source packages of format ``3.0 (quilt)``: unpacked as an ordinary user, with Debian's own patches applied."""

from __future__ import annotations

import subprocess
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from pytest_spapr import tar
from pytest_spapr.cache import cache_errors
from pytest_spapr.debian.apt import Package
from pytest_spapr.errors import VerificationError
from pytest_spapr.progress import Progress


def version_of(files: Mapping[Package, Path]) -> str:
    """Return the source package's version, with its epoch, as its .dsc says it.

    :raises VerificationError: there is no .dsc or it names no version.
    """
    for package, path in files.items():
        if package.file.endswith(".dsc"):
            for line in path.read_text(errors="replace").splitlines():
                if line.startswith("Version: "):
                    return line.removeprefix("Version: ").strip()
    raise VerificationError(f"the source package {', '.join(package.file for package in files)} has no .dsc with a version")


def unpack_source(files: Mapping[Package, Path], tree: Path, patch: Sequence[str], progress: Progress) -> None:
    """Unpack a source package into the new directory ``tree`` and apply Debian's patches: 10 s and 200 to 700 MB for QEMU.

    :param files: verified, from :meth:`AptState.fetch_source`. :param patch: the command to run GNU patch with.
    :raises VerificationError: it is not of this format, or a patch of Debian's own does not apply. :raises CacheError: disk full.
    """
    originals = [path for package, path in files.items() if ".orig.tar." in package.file]
    changes = [path for package, path in files.items() if ".debian.tar." in package.file]
    if len(originals) != 1 or len(changes) != 1:
        raise VerificationError(f"{', '.join(package.file for package in files)}: not a source package of format 3.0 (quilt)")
    with cache_errors(tree):
        upper = tree.with_name(f"{tree.name}.unpacked")
        _extract(originals[0], upper, progress)
        inside = list(upper.iterdir())
        (inside[0] if len(inside) == 1 and inside[0].is_dir() else upper).rename(tree)
        if upper.exists():
            upper.rmdir()
        _extract(changes[0], tree, progress)
    series = tree / "debian/patches/series"
    names = [line.split()[0] for line in series.read_text().splitlines() if line.strip() and not line.lstrip().startswith("#")]
    for number, name in enumerate(names, 1):
        progress.update(number, len(names), f"Debian's patch {name}")
        failure = apply(patch, tree, tree / "debian/patches" / name)
        if failure is not None:
            raise VerificationError(f"Debian's patch {name} does not apply to Debian's source: {failure}")


def apply(patch: Sequence[str], tree: Path, file: Path) -> str | None:
    """Apply a patch to a tree, as ``patch -p1`` does, without fuzz; return what GNU patch says where it does not apply.

    The tree is then half patched.
    """
    with file.open("rb") as stream:
        command = [
            *patch,
            "--strip=1",
            "--batch",
            "--forward",
            "--fuzz=0",
            "--unified",
            "--no-backup-if-mismatch",
            "--reject-file=-",
        ]
        result = subprocess.run(command, cwd=tree, stdin=stream, capture_output=True, text=True, errors="replace", check=False)
    return None if result.returncode == 0 else (result.stdout + result.stderr).strip()


def _extract(archive: Path, directory: Path, progress: Progress) -> None:
    progress.update(0, 1, archive.name)
    try:
        with tarfile.open(archive) as stream:
            tar.unpack(stream, directory)
    except tar.WrongMember as member:
        raise VerificationError(f"{archive} has a member that is none of a source tree's: {member}") from member
    except tarfile.TarError as error:
        raise VerificationError(f"{archive} is not a whole archive: {error}") from error
