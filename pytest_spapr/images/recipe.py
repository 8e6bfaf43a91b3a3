"""Recipes: what a guest image is made of, as data (TOML) next to the files that go into it.

A recipe ``NAME/recipe.toml`` may name a ``base``: what it does not say itself is then what ``BASE/base.toml`` says. Tables are joined
entry by entry, everything else is replaced whole.
"""

from __future__ import annotations

import hashlib
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pytest_spapr.errors import ImageError

# Part of each recipe's digest: raise it when the same recipe gives another image because this code changed.
BUILDER = 4
#: dpkg's name for what a pseries machine runs.
PSERIES = "ppc64el"
# What is booted when nobody names an image.
DEFAULT_IMAGE = "debian-12"


@dataclass(frozen=True, slots=True)
class File:
    """A file of the recipe's own. :ivar path: in the guest. :ivar source: next to the recipe or the base that names it."""

    path: str
    source: Path
    mode: int


@dataclass(frozen=True, slots=True)
class Disk:
    """The disk of an image that has one: a whole Debian, whose packages are configured in a guest (``provision/``).

    :ivar packages: of the recipe's ``suites``, and all that they depend on. :ivar excluded: globs of what is left out of them.
    :ivar configure: the script that configures them, run in the disk's root. :ivar files: of the recipe's own, which go there, too.
    :ivar size: bytes that its file system has room for.
    """

    packages: tuple[str, ...]
    excluded: tuple[str, ...]
    configure: Path
    files: tuple[File, ...]
    size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """A checked recipe.

    :ivar kernel_package: resolved in ``kernel_suites`` with its dependencies; ``kernel_files`` are globs of the package names among them
        that matter.
    :ivar packages: of ``suites``: where programs and libraries come from. :ivar dependencies: so do all that they depend on; else nothing
        is added to them.
    :ivar programs: path in the guest -> path in a package; their libraries are found.
    :ivar trees: the same of directories, with all that packages have below them.
    :ivar applets: names that busybox answers to. :ivar modules: kernel modules to load, in order; dependencies are found.
    :ivar spare_modules: modules that are there for whoever says ``modprobe NAME``.
    :ivar console_shell: the init keeps a shell on hvc3 for the plugin (``guest/console.py``), and the program ``renew``, which is
        added, on hvc2.
    :ivar disk: what the init goes on with, None for an image that is all initramfs.
    :ivar host: it is a host of nested machines, and never a guest under test.
    :ivar digest: SHA256 of all that the recipe's author wrote.
    """

    name: str
    description: str
    suites: tuple[str, ...]
    architecture: str
    kernel_suites: tuple[str, ...]
    kernel_package: str
    kernel_files: tuple[str, ...]
    packages: tuple[str, ...]
    dependencies: bool
    programs: Mapping[str, str]
    trees: Mapping[str, str]
    applets: tuple[str, ...]
    directories: tuple[str, ...]
    links: Mapping[str, str]
    files: tuple[File, ...]
    modules: tuple[str, ...]
    spare_modules: tuple[str, ...]
    console_shell: bool
    disk: Disk | None
    host: bool
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
    layers = [_read(directory / name / "recipe.toml")]
    if (base := layers[0].table.pop("base", None)) is not None:
        layers.append(_read(_base(directory, base, layers[0].path)))
    return _checked(name, layers)


@dataclass(frozen=True, slots=True)
class _Layer:
    """One TOML file: a recipe, or what it is based on."""

    path: Path
    text: str
    table: dict[str, Any]


def _read(path: Path) -> _Layer:
    try:
        text = path.read_text()
        return _Layer(path, text, tomllib.loads(text))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ImageError(f"{path}: {error}") from error


def _base(directory: Path, name: object, asker: Path) -> Path:
    known = sorted(path.parent.name for path in directory.glob("*/base.toml"))
    if name not in known:
        raise ImageError(
            f"{asker}: base must name a directory with a base.toml, not {name!r}; there are {', '.join(known) or 'none'}"
        )
    return directory / str(name) / "base.toml"


def _checked(name: str, layers: Sequence[_Layer]) -> Recipe:
    reader = _Reader(layers)
    executable = reader.strings("executable")
    files = _files(reader.sources("files"), executable)
    disk = _disk(reader) if reader.has("disk_packages") else None
    architecture = reader.string("architecture")
    recipe = Recipe(
        name=name,
        description=reader.string("description"),
        suites=reader.strings("suites"),
        architecture=architecture,
        kernel_suites=reader.strings("kernel_suites"),
        kernel_package=reader.string("kernel_package"),
        kernel_files=reader.strings("kernel_files"),
        packages=reader.strings("packages"),
        dependencies=reader.has("dependencies") and reader.boolean("dependencies"),
        programs=reader.mapping("programs"),
        trees=reader.mapping("trees") if reader.has("trees") else {},
        applets=tuple(reader.string("applets").split()),
        directories=reader.strings("directories"),
        links=reader.mapping("links"),
        files=files,
        modules=reader.strings("modules"),
        spare_modules=reader.strings("spare_modules"),
        console_shell=reader.boolean("console_shell"),
        disk=disk,
        host=architecture != PSERIES or (reader.has("host") and reader.boolean("host")),
        digest=_digest(layers, files if disk is None else (*files, *disk.files, File("", disk.configure, 0)), layers[0].path),
    )
    reader.finish()
    return recipe


def _files(sources: Mapping[str, Path], executable: Sequence[str]) -> tuple[File, ...]:
    return tuple(File(path, source, 0o755 if path in executable else 0o644) for path, source in sources.items())


def _disk(reader: _Reader) -> Disk:
    path, size = reader.value("disk_size")
    if not isinstance(size, int) or size < 1:
        raise ImageError(f"{path}: disk_size must be a number of MiB, not {size!r}")
    return Disk(
        packages=reader.strings("disk_packages"),
        excluded=reader.strings("disk_excluded"),
        configure=reader.source("disk_configure"),
        files=_files(reader.sources("disk_files"), reader.strings("disk_executable")),
        size=size << 20,
    )


def _digest(layers: Iterable[_Layer], files: Iterable[File], where: Path) -> str:
    digest = hashlib.sha256("\0".join((str(BUILDER), *(layer.text for layer in layers))).encode())
    for file in sorted(files, key=lambda file: file.path):
        try:
            digest.update(file.source.read_bytes() + b"\0")
        except OSError as error:
            raise ImageError(f"{where}: {file.path}: {error}") from error
    return digest.hexdigest()


class _Reader:
    """Takes typed values out of TOML tables, of which the first that has a key wins, and names what is wrong."""

    def __init__(self, layers: Sequence[_Layer]) -> None:
        self._layers = layers
        self._read: set[str] = set()

    def has(self, key: str) -> bool:
        return any(key in layer.table for layer in self._layers)

    def source(self, key: str) -> Path:
        """Return the string ``key`` as the path of a file next to the file that has it."""
        path, _ = self.value(key)
        return path.parent / self.string(key)

    def string(self, key: str) -> str:
        path, value = self.value(key)
        if not isinstance(value, str):
            raise ImageError(f"{path}: {key} must be a string, not {value!r}")
        return value

    def boolean(self, key: str) -> bool:
        path, value = self.value(key)
        if not isinstance(value, bool):
            raise ImageError(f"{path}: {key} must be true or false, not {value!r}")
        return value

    def strings(self, key: str) -> tuple[str, ...]:
        path, value = self.value(key)
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise ImageError(f"{path}: {key} must be a list of strings, not {value!r}")
        return tuple(value)

    def mapping(self, key: str) -> dict[str, str]:
        return {name: item for name, (_, item) in self._joined(key).items()}

    def sources(self, key: str) -> dict[str, Path]:
        """Return the table ``key`` with its values as paths of files next to the file that has the entry."""
        return {name: path.parent / item for name, (path, item) in self._joined(key).items()}

    def finish(self) -> None:
        for layer in self._layers:
            if unknown := layer.table.keys() - self._read:
                raise ImageError(
                    f"{layer.path}: unknown: {', '.join(sorted(unknown))}; known are {', '.join(sorted(self._read))}"
                )

    def _joined(self, key: str) -> dict[str, tuple[Path, str]]:
        joined: dict[str, tuple[Path, str]] = {}
        # Wins what is written last.
        for path, value in reversed(self._values(key)):
            if not isinstance(value, dict) or not all(isinstance(item, str) for item in value.values()):
                raise ImageError(f"{path}: {key} must be a table of strings, not {value!r}")
            joined |= {name: (path, item) for name, item in value.items()}
        return joined

    def value(self, key: str) -> tuple[Path, object]:
        return self._values(key)[0]

    def _values(self, key: str) -> list[tuple[Path, object]]:
        """Return what the files say, the one that wins first, and the file that says it."""
        self._read.add(key)
        found = [(layer.path, layer.table[key]) for layer in self._layers if key in layer.table]
        if not found:
            raise ImageError(f"{self._layers[0].path}: {key} is missing")
        return found
