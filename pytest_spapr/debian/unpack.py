"""The content of .deb files, read as an ordinary user: no maintainer script runs, no owner and no device node is made."""

from __future__ import annotations

import shutil
import subprocess
import tarfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath

from pytest_spapr.cache import cache_errors
from pytest_spapr.errors import VerificationError
from pytest_spapr.progress import Progress


class Kind(Enum):
    """What a member is."""

    FILE = "file"
    DIRECTORY = "directory"
    SYMLINK = "symlink"
    HARDLINK = "hardlink"


@dataclass(frozen=True, slots=True)
class Member:
    """One member of a package. :ivar path: without a slash in front. :ivar mode: permission bits. :ivar target: of a link."""

    path: str
    kind: Kind
    mode: int
    target: str = ""
    data: bytes = b""


def members(deb: Path, wanted: Callable[[str], bool] = lambda _path: True) -> Iterator[Member]:
    """Yield the package's members whose path is ``wanted``, in its own order; only their data is read into memory.

    :raises VerificationError: when the file is no whole package, or a member's path would leave its root.
    """
    yield from _members(deb, "--fsys-tarfile", wanted)


def control(deb: Path) -> dict[str, bytes]:
    """Return the files that describe a package to dpkg, by name: ``control``, ``postinst`` and so on.

    :raises VerificationError: when the file is no whole package.
    """
    return {
        member.path: member.data for member in _members(deb, "--ctrl-tarfile", lambda _path: True) if member.kind is Kind.FILE
    }


def _members(deb: Path, which: str, wanted: Callable[[str], bool]) -> Iterator[Member]:
    command = ["dpkg-deb", which, str(deb)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        try:
            with tarfile.open(fileobj=process.stdout, mode="r|") as archive:
                for entry in archive:
                    path = _clean(entry.name, deb)
                    if path and wanted(path):
                        yield _member(archive, entry, path, deb)
        except tarfile.TarError as error:
            said = process.stderr.read().decode(errors="replace").strip()
            raise VerificationError(f"{deb} is not a whole Debian package: {said or error}") from error
        except GeneratorExit:
            process.kill()
            raise
        said = process.stderr.read().decode(errors="replace").strip()
    if process.returncode != 0:
        raise VerificationError(f"{deb} is not a whole Debian package: {said}")


def _member(archive: tarfile.TarFile, entry: tarfile.TarInfo, path: str, deb: Path) -> Member:
    mode = entry.mode & 0o7777
    if entry.isdir():
        return Member(path, Kind.DIRECTORY, mode)
    if entry.issym():
        return Member(path, Kind.SYMLINK, 0o777, entry.linkname)
    if entry.islnk():
        return Member(path, Kind.HARDLINK, mode, _clean(entry.linkname, deb))
    stream = archive.extractfile(entry)
    if stream is None:
        raise VerificationError(f"{deb} has a member that is no file, directory or link: {path}")
    return Member(path, Kind.FILE, mode, data=stream.read())


def _clean(name: str, deb: Path) -> str:
    parts = [part for part in PurePosixPath(name).parts if part != "."]
    if ".." in parts or "/" in parts:
        raise VerificationError(f"{deb} has a member outside of its root: {name}")
    return "/".join(parts)


def unpack(debs: Sequence[Path], prefix: Path, excluded: Sequence[str], progress: Progress) -> None:
    """Unpack packages over each other below ``prefix``; paths that match a glob in ``excluded`` are left out.

    Set-user-id bits are dropped. A directory that another package ships as a symlink (``lib`` -> ``usr/lib``) is followed inside
    the prefix, as dpkg does.

    :raises CacheError: when the disk is full or not writable.
    :raises VerificationError: see :func:`members`.
    """

    def wanted(path: str) -> bool:
        return not any(fnmatch(path, pattern) for pattern in excluded)

    with cache_errors(prefix):
        for number, deb in enumerate(debs, 1):
            progress.update(number, len(debs), deb.name.split("_")[0])
            for member in members(deb, wanted):
                _place(prefix, member)


def _place(prefix: Path, member: Member) -> None:
    path = prefix / member.path
    if not path.parent.resolve().is_relative_to(prefix.resolve()):
        raise VerificationError(f"a package's file {member.path} would be written outside of {prefix}, through a symlink")
    path.parent.mkdir(parents=True, exist_ok=True)
    if member.kind is Kind.DIRECTORY:
        path.mkdir(exist_ok=True)
        return
    path.unlink(missing_ok=True)
    if member.kind is Kind.SYMLINK:
        path.symlink_to(member.target)
    elif member.kind is Kind.HARDLINK:
        shutil.copy2(prefix / member.target, path)
    else:
        path.write_bytes(member.data)
        path.chmod(member.mode & 0o777)
