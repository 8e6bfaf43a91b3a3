"""Recipes: what a guest image is made of, as data (TOML) next to the files that go into it."""

from __future__ import annotations

import hashlib
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pytest_spapr.errors import ImageError

# Part of each recipe's digest: raise it when the same recipe gives another image because this code changed.
BUILDER = 3
# What is booted when nobody names an image.
DEFAULT_IMAGE = "debian-12"


@dataclass(frozen=True, slots=True)
class File:
    """A file of the recipe's own. :ivar path: in the guest. :ivar source: next to the recipe."""

    path: str
    source: Path
    mode: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """A checked recipe.

    :ivar kernel_package: resolved with its dependencies; ``kernel_files`` are globs of the package names among them that matter.
    :ivar packages: where programs and libraries come from; nothing that they depend on is added.
    :ivar programs: path in the guest -> path in a package; their libraries are found.
    :ivar applets: names that busybox answers to. :ivar modules: kernel modules to load, in order; dependencies are found.
    :ivar console_shell: the init keeps a shell on hvc3 for the plugin (``guest/console.py``), and the program ``renew``, which is
        added, on hvc2.
    :ivar digest: SHA256 of all that the recipe's author wrote.
    """

    name: str
    description: str
    suites: tuple[str, ...]
    architecture: str
    kernel_package: str
    kernel_files: tuple[str, ...]
    packages: tuple[str, ...]
    programs: Mapping[str, str]
    applets: tuple[str, ...]
    directories: tuple[str, ...]
    links: Mapping[str, str]
    files: tuple[File, ...]
    modules: tuple[str, ...]
    console_shell: bool
    digest: str

    @property
    def key(self) -> str:
        """What this recipe's image is called in the cache: a changed recipe is another image."""
        return f"{self.name}-{self.digest[:12]}"


def recipes_directory() -> Path:
    """Return where the recipes are: next to this package in a checkout, inside it when it is installed."""
    package = Path(__file__).resolve().parent.parent
    installed = package / "guest-images"
    return installed if installed.is_dir() else package.parent / "guest-images"


def names(directory: Path | None = None) -> list[str]:
    """Return the names of all known recipes."""
    return sorted(path.parent.name for path in (directory or recipes_directory()).glob("*/recipe.toml"))


def load(name: str, directory: Path | None = None) -> Recipe:
    """Return the recipe ``name``.

    :raises ImageError: unknown, unreadable, or a key is missing, unknown or of the wrong type.
    """
    directory = directory or recipes_directory()
    if name not in names(directory):
        raise ImageError(
            f"no guest image is called {name!r}: known are {', '.join(names(directory)) or 'none'}; a directory is given as a path with "
            "a slash in it."
        )
    path = directory / name / "recipe.toml"
    try:
        text = path.read_text()
        table = tomllib.loads(text)
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise ImageError(f"{path}: {error}") from error
    return _checked(table, text, path)


def _checked(table: dict[str, Any], text: str, path: Path) -> Recipe:
    reader = _Reader(table, path)
    files = tuple(
        File(target, path.parent / source, 0o755 if target in reader.strings("executable") else 0o644)
        for target, source in reader.mapping("files").items()
    )
    digest = hashlib.sha256(f"{BUILDER}\0{text}".encode())
    for file in sorted(files, key=lambda file: file.path):
        try:
            digest.update(file.source.read_bytes() + b"\0")
        except OSError as error:
            raise ImageError(f"{path}: {file.path}: {error}") from error
    recipe = Recipe(
        name=path.parent.name,
        description=reader.string("description"),
        suites=reader.strings("suites"),
        architecture=reader.string("architecture"),
        kernel_package=reader.string("kernel_package"),
        kernel_files=reader.strings("kernel_files"),
        packages=reader.strings("packages"),
        programs=reader.mapping("programs"),
        applets=tuple(reader.string("applets").split()),
        directories=reader.strings("directories"),
        links=reader.mapping("links"),
        files=files,
        modules=reader.strings("modules"),
        console_shell=reader.boolean("console_shell"),
        digest=digest.hexdigest(),
    )
    reader.finish()
    return recipe


class _Reader:
    """Takes typed values out of a TOML table and names what is wrong."""

    def __init__(self, table: dict[str, Any], path: Path) -> None:
        self._table = table
        self._path = path
        self._read: set[str] = set()

    def string(self, key: str) -> str:
        value = self._value(key)
        if not isinstance(value, str):
            raise ImageError(f"{self._path}: {key} must be a string, not {value!r}")
        return value

    def boolean(self, key: str) -> bool:
        value = self._value(key)
        if not isinstance(value, bool):
            raise ImageError(f"{self._path}: {key} must be true or false, not {value!r}")
        return value

    def strings(self, key: str) -> tuple[str, ...]:
        value = self._value(key)
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise ImageError(f"{self._path}: {key} must be a list of strings, not {value!r}")
        return tuple(value)

    def mapping(self, key: str) -> dict[str, str]:
        value = self._value(key)
        if not isinstance(value, dict) or not all(isinstance(item, str) for item in value.values()):
            raise ImageError(f"{self._path}: {key} must be a table of strings, not {value!r}")
        return dict(value)

    def finish(self) -> None:
        if unknown := self._table.keys() - self._read:
            raise ImageError(f"{self._path}: unknown: {', '.join(sorted(unknown))}; known are {', '.join(sorted(self._read))}")

    def _value(self, key: str) -> object:
        self._read.add(key)
        if key not in self._table:
            raise ImageError(f"{self._path}: {key} is missing")
        return self._table[key]
