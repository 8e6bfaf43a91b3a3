"""Archives of tar that are unpacked with the same care on every Python: filters for that came only with 3.11.4."""

from __future__ import annotations

import tarfile
from pathlib import Path


class WrongMember(tarfile.TarError):
    """A member that would be outside of the directory, or is no file, directory or symbolic link. The message is its name."""


def unpack(archive: tarfile.TarFile, directory: Path) -> None:
    """Unpack an archive into a directory, made if need be: contents and permission bits of files, symbolic links, and directories.

    :raises WrongMember: what comes before it in the archive is there then. :raises tarfile.TarError: it is not whole.
    """
    directory.mkdir(parents=True, exist_ok=True)
    root = directory.resolve()
    # The checks are below; Pythons that have filters want to hear about them.
    archive.extraction_filter = getattr(tarfile, "fully_trusted_filter", None)
    for member in archive:
        path = directory / member.name
        if path == directory and member.isdir():
            continue
        inside = ".." not in path.parts and path.parent.resolve().is_relative_to(root)
        if not inside or not (member.isfile() or member.isdir() or member.issym()):
            raise WrongMember(member.name)
        if path.is_symlink():
            path.unlink()
        member.mode &= 0o777
        archive.extract(member, directory, set_attrs=not member.isdir())
