"""A source tree that is patched again and again, and in which only what changes is written: what was compiled before stays good."""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from pytest_spapr.cache import cache_errors
from pytest_spapr.debian.source import apply
from pytest_spapr.errors import BuildError

_TOUCHED: Final = "touched.json"
_NAMES: Final = re.compile(rb"^(?:--- |\+\+\+ |rename (?:from|to) |copy (?:from|to) )([^\t\r\n]+)", re.MULTILINE)


class PatchedTree:
    """The directory ``root/src``: the files of ``pristine``, but for those that patches changed.

    :param root: the tree's own directory. :param pristine: the unpatched tree, which is only read.
    :param patch: the command to run GNU patch with.
    """

    def __init__(self, root: Path, pristine: Path, patch: Sequence[str]) -> None:
        self.source = root / "src"
        self._root = root
        self._pristine = pristine
        self._patch = patch

    def create(self) -> None:
        """Make the tree, unpatched, in place of what is there; its files share their disk space with the pristine ones."""
        with cache_errors(self._root):
            shutil.rmtree(self.source, ignore_errors=True)
            scratch = self._root / "src.new"
            shutil.rmtree(scratch, ignore_errors=True)
            shutil.copytree(self._pristine, scratch, symlinks=True, copy_function=os.link)
            self._remember(set())
            scratch.rename(self.source)

    def patch(self, patches: Sequence[Path]) -> set[str]:
        """Bring the tree to the pristine state with these patches, in their order, and return the files that were written.

        Files that are as they should be keep their times. All patches are tried elsewhere first: one that does not apply changes
        nothing.

        :raises BuildError: one does not apply, is empty of changes, or cannot be read.
        """
        with cache_errors(self._root), tempfile.TemporaryDirectory(prefix="patches.", dir=self._root) as directory:
            stage = Path(directory)
            before = self._touched()
            wanted = before.union(*(_names(patch) for patch in patches))
            for name in wanted:
                if (self._pristine / name).is_file():
                    _copy(self._pristine / name, stage / name)
            for patch in patches:
                failure = apply(self._patch, stage, patch.absolute())
                if failure is not None:
                    said = "\n".join(f"  {line}" for line in failure.splitlines())
                    raise BuildError(f"{patch} does not apply. Nothing was changed. GNU patch says:\n{said}")
            wanted |= {str(path.relative_to(stage)) for path in stage.rglob("*") if path.is_file()}
            # Before the first write: a run that is killed in between knows then what it has to put right.
            self._remember(wanted)
            changed = {name for name in wanted if self._settle(name, stage / name)}
            self._remember({name for name in wanted if not _same(self._pristine / name, self.source / name)})
        return changed

    def _settle(self, name: str, wanted: Path) -> bool:
        """Make a file of the tree as ``wanted`` is, or remove it where there is none; return whether it was not so before."""
        path = self.source / name
        if _same(wanted, path):
            return False
        # A new file in place of the old one: that may be the pristine one itself. It is as new as it should look to ninja.
        path.unlink(missing_ok=True)
        if wanted.is_file():
            _copy(wanted, path)
        return True

    def _touched(self) -> set[str]:
        return set(json.loads((self._root / _TOUCHED).read_text()))

    def _remember(self, names: set[str]) -> None:
        part = self._root / f"{_TOUCHED}.new"
        part.write_text(json.dumps(sorted(names)))
        part.replace(self._root / _TOUCHED)


def contents(patch: Path) -> bytes:
    """Return what a patch consists of. :raises BuildError: it cannot be read."""
    try:
        return patch.read_bytes()
    except OSError as error:
        raise BuildError(
            f"{patch}: {error.strerror}. Give the file of a patch, as `git diff` or `git format-patch` makes it."
        ) from error


def _names(patch: Path) -> set[str]:
    """Return the files that a patch may change; a few more do no harm."""
    found = set(_split(contents(patch)))
    if not found:
        raise BuildError(
            f"{patch} changes no file. Give a patch as `git diff` or `git format-patch` makes it, with a/ and b/ paths."
        )
    return found


def _split(text: bytes) -> Iterator[str]:
    for match in _NAMES.finditer(text):
        words = match[1].decode(errors="replace").strip()
        name = words if match[0].startswith((b"rename", b"copy")) else words.partition("/")[2]
        parts = Path(name).parts
        if name and words != "/dev/null" and ".." not in parts and not name.startswith("/"):
            yield name


def _same(one: Path, other: Path) -> bool:
    if not one.is_file() or not other.is_file():
        return one.is_file() == other.is_file()
    return one.stat().st_mode == other.stat().st_mode and one.read_bytes() == other.read_bytes()


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(source.read_bytes())
    target.chmod(source.stat().st_mode & 0o777)
