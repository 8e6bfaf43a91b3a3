"""The userland part of an initramfs: the recipe's programs out of packages, with the libraries that they need and nothing else."""

from __future__ import annotations

import posixpath
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from pytest_spapr.debian.unpack import Kind, Member, members
from pytest_spapr.errors import ImageError
from pytest_spapr.images import cpio, renew
from pytest_spapr.images.elf import Elf, NotElf
from pytest_spapr.images.recipe import Recipe

# Where programs and libraries are; documentation, locales, headers and the like never matter to an image.
_ROOTS = ("bin/", "sbin/", "lib/", "lib64/", "usr/bin/", "usr/sbin/", "usr/lib/", "etc/")


class _Files:
    """All members of some packages, with lookups as the guest would do them."""

    def __init__(self, debs: Sequence[Path], asked: Iterable[str] = ()) -> None:
        roots = (*_ROOTS, *asked)
        self._members: dict[str, Member] = {}
        for deb in debs:
            for member in members(deb, lambda path: path.startswith(roots)):
                if member.kind is not Kind.DIRECTORY:
                    self._members[member.path] = member
        self._libraries = {posixpath.basename(path): path for path in self._members if "/lib" in f"/{path}" and ".so" in path}

    def find(self, path: str) -> Member | None:
        """Return the file at ``path``, through links; None when there is nothing."""
        for _ in range(8):
            member = self._members.get(path)
            if member is None or member.kind is Kind.FILE:
                return member
            target = (
                member.target if member.kind is Kind.HARDLINK else posixpath.join("/", posixpath.dirname(path), member.target)
            )
            path = posixpath.normpath(target).lstrip("/")
        return None

    def below(self, directory: str) -> dict[str, Member]:
        """Return what is below a directory, by its path from there; a hard link as the file that it is."""
        start = f"{directory}/"
        inside = {path: member for path, member in self._members.items() if path.startswith(start)}
        return {
            path.removeprefix(start): (self.find(path) or member) if member.kind is Kind.HARDLINK else member
            for path, member in inside.items()
        }

    def library(self, name: str) -> Member | None:
        path = self._libraries.get(posixpath.basename(name))
        return self.find(path) if path else None


def tree(recipe: Recipe, debs: Sequence[Path]) -> dict[str, cpio.Node]:
    """Return the userland as a tree: programs, their libraries in /lib, busybox's names, the recipe's files, links and directories.

    :raises ImageError: a program or library is in none of the packages.
    """
    packaged = _Files(debs, (*recipe.programs.values(), *(f"{path}/" for path in recipe.trees.values())))
    whole: dict[str, cpio.Node] = {path: cpio.directory() for path in recipe.directories}
    whole["dev/console"] = cpio.character_device(5, 1)
    whole["dev/null"] = cpio.character_device(1, 3, 0o666)
    programs = {target: _program(packaged, source, recipe) for target, source in recipe.programs.items()}
    for target, source in recipe.trees.items():
        found = _tree(packaged, source, recipe)
        whole |= {f"{target}/{path}": cpio.symlink(one.target) for path, one in found.items() if one.kind is Kind.SYMLINK}
        programs |= {f"{target}/{path}": one for path, one in found.items() if one.kind is not Kind.SYMLINK}
    whole |= {
        path: cpio.file(found.data, found.mode) for path, found in (programs | _libraries(packaged, programs, recipe)).items()
    }
    whole |= {f"bin/{applet}": cpio.symlink("busybox") for applet in recipe.applets}
    whole |= {path: cpio.symlink(target) for path, target in recipe.links.items()}
    if recipe.console_shell:
        whole["usr/sbin/renew"] = cpio.file(renew.program(), 0o755)
    whole |= {file.path: cpio.file(file.source.read_bytes(), file.mode) for file in recipe.files}
    return whole


def _program(packaged: _Files, source: str, recipe: Recipe) -> Member:
    program = packaged.find(source)
    if program is None:
        raise ImageError(f"image {recipe.name}: none of its packages has {source}: add the package that has it to the recipe.")
    return program


def _tree(packaged: _Files, source: str, recipe: Recipe) -> dict[str, Member]:
    if not (found := packaged.below(source)):
        raise ImageError(f"image {recipe.name}: none of its packages has anything below {source}.")
    return found


def _libraries(packaged: _Files, programs: Mapping[str, Member], recipe: Recipe) -> dict[str, Member]:
    found: dict[str, Member] = {}
    pending = list(programs.items())
    while pending:
        asker, file = pending.pop()
        try:
            needed = Elf(file.data).needed()
        except NotElf:
            continue  # a script: what it runs is listed by the recipe
        for name in needed:
            # An interpreter is asked for by its full path, a library by its name: /lib is on the loader's path.
            path = name.lstrip("/") if "/" in name else f"lib/{name}"
            if path in found:
                continue
            library = packaged.library(name)
            if library is None:
                raise ImageError(
                    f"image {recipe.name}: {asker} needs {name}, which is in none of its packages: add one to the recipe."
                )
            found[path] = library
            pending.append((path, library))
    return found
