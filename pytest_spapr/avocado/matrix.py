"""The nightly's matrix, as its file has it: axes (builds, images, modes, accelerators), and on each the names of what is chosen from.

The file is one for Avocado's varianter yaml-to-mux, which makes the full product of it. Where that is too large its varianter cit chooses
cells such that each pair of names is in one, from names alone; what the names stand for is looked up here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import combinations, product
from pathlib import Path
from typing import Any, Final, NamedTuple

import yaml

from pytest_spapr.errors import ConfigError

#: Where yaml-to-mux hangs a file's content.
_ROOT: Final = "/run"
_MUX: Final = "!mux"
_FILTER_OUT: Final = "!filter-out"
#: What separates a name's parameters in cit's files.
_RESERVED: Final = "[],|="


@dataclass(slots=True)
class _Branch:
    """A mapping of the file. :ivar excluded: the paths that it cannot go with."""

    values: dict[str, Any] = field(default_factory=dict)
    excluded: list[str] = field(default_factory=list)
    mux: bool = False


class Parameter(NamedTuple):
    """A parameter of a cell. :ivar path: the place in the matrix that has it. One further down wins over those above it."""

    path: str
    name: str
    value: Any

    @property
    def depth(self) -> int:
        return self.path.rstrip("/").count("/")


@dataclass(frozen=True, slots=True)
class Matrix:
    """A matrix. :ivar common: parameters of all cells. :ivar axes: of each axis its names, and the parameters that each stands for.

    :ivar excluded: pairs of (axis, name) that are in no cell together.
    """

    file: Path
    common: Mapping[str, Any]
    axes: Mapping[str, Mapping[str, Mapping[str, Any]]]
    excluded: tuple[tuple[tuple[str, str], tuple[str, str]], ...]

    def parameters(self, names: Mapping[str, str]) -> list[Parameter]:
        """Return the parameters of the cell that has these names, those of its axes that are not named left out.

        :raises ConfigError: the matrix has no such axis, or no such name on it.
        """
        found = [Parameter(_ROOT, *one) for one in self.common.items()]
        for axis, name in names.items():
            if name not in self.axes.get(axis, {}):
                raise ConfigError(f"{self.file} has no {name!r} on an axis {axis!r}.")
            found += [Parameter(f"{_ROOT}/{axis}/{name}", *one) for one in self.axes[axis][name].items()]
        return found

    def chosen(self, variants: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Return cit's variants with what their names stand for. :param variants: as Avocado writes them down."""
        alone = {axis: name for axis, names in self.axes.items() if len(names) == 1 for name in names}
        found = []
        for one in variants:
            names = alone | {name: value for _, leaf in one["variant"] for _, name, value in leaf}
            found.append({**one, "variant": [["/", [list(parameter) for parameter in self.parameters(names)]]]})
        return found

    def size(self) -> int:
        """Return the number of cells of the full product."""
        barred = [dict(pair) for pair in self.excluded]
        cells = (dict(zip(self.axes, names, strict=True)) for names in product(*self.axes.values()))
        return sum(not any(one.items() <= cell.items() for one in barred) for cell in cells)

    def lacks(self, variants: Iterable[Mapping[str, Any]]) -> set[frozenset[tuple[str, str]]]:
        """Return the pairs of (axis, name) that are in none of cit's variants, without those that exclude each other."""
        axes = [[(axis, name) for name in names] for axis, names in self.axes.items() if len(names) > 1]
        pairs = {frozenset(pair) for one, other in combinations(axes, 2) for pair in product(one, other)}
        pairs -= {frozenset(pair) for pair in self.excluded}
        for one in variants:
            named = [(axis, name) for _, leaf in one["variant"] for _, axis, name in leaf]
            pairs -= {frozenset(pair) for pair in combinations(named, 2)}
        return pairs

    def as_cit(self) -> str:
        """Return the matrix as a file for the varianter cit: names, and which of them exclude each other.

        :raises ConfigError: there is nothing to choose from.
        """
        # It takes no axis that has one name.
        axes = {axis: names for axis, names in self.axes.items() if len(names) > 1}
        if len(axes) < 2:
            raise ConfigError(f"{self.file}: pairs need two axes with two names.")
        lines = ["PARAMETERS", *(f"{axis} [{', '.join(names)}]" for axis, names in axes.items())]
        barred = [(one, other) for one, other in self.excluded if one[0] in axes and other[0] in axes]
        lines += ["CONSTRAINTS", *(f"{a} != {b} || {c} != {d}" for (a, b), (c, d) in barred)]
        return "\n".join(lines) + "\n"


def read_matrix(file: Path) -> Matrix:
    """Return the matrix of a file.

    :raises ConfigError: it cannot be read, is no YAML, or has other than parameters and axes: nothing is nested below their names.
    """
    try:
        with file.open(encoding="utf-8") as stream:
            root = yaml.load(stream, _Loader)  # noqa: S506 - a SafeLoader with three tags more
    except OSError as error:
        raise ConfigError(f"{file} cannot be read: {error.strerror}.") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{file} is no YAML: {error}") from error
    if not isinstance(root, _Branch):
        raise ConfigError(f"{file}: expected a mapping: parameters, and axes with the tag {_MUX}.")
    common, axes, pairs = {}, {}, []
    for name, value in root.values.items():
        if isinstance(value, _Branch):
            axes[name] = _axis(file, name, value)
            pairs += [((name, one), path) for one, branch in value.values.items() for path in branch.excluded]
        else:
            common[name] = value
    if not axes:
        raise ConfigError(f"{file} has no axis: expected at least one mapping with the tag {_MUX}.")
    excluded = tuple((one, _place(file, path, axes)) for one, path in pairs)
    return Matrix(file, common, axes, excluded)


def _axis(file: Path, axis: str, branch: _Branch) -> dict[str, dict[str, Any]]:
    if not branch.mux or not branch.values:
        raise ConfigError(f"{file}: {axis} is a mapping: expected the tag {_MUX} before names, each with its parameters.")
    for name, leaf in branch.values.items():
        flat = isinstance(leaf, _Branch) and not any(isinstance(value, _Branch) for value in leaf.values.values())
        if not flat or set(name) & set(_RESERVED):
            raise ConfigError(
                f"{file}: {axis}: {name}: expected a name without any of {_RESERVED}, and its parameters, none of them a mapping."
            )
    return {name: leaf.values for name, leaf in branch.values.items()}


def _place(file: Path, path: str, axes: Mapping[str, Mapping[str, Any]]) -> tuple[str, str]:
    """Return (axis, name) of a path."""
    parts = path.strip("/").split("/")
    if len(parts) != 3 or parts[0] != "run" or parts[2] not in axes.get(parts[1], {}):
        raise ConfigError(f"{file}: {_FILTER_OUT} {path}: there is no such name; expected /run/AXIS/NAME.")
    return parts[1], parts[2]


class _Loader(yaml.SafeLoader):
    """YAML with yaml-to-mux's tags for axes and exclusions."""


def _branch(loader: _Loader, node: yaml.MappingNode) -> _Branch:
    branch = _Branch(mux=node.tag == _MUX)
    for key, value in node.value:
        if key.tag == _FILTER_OUT:
            branch.excluded.append(str(loader.construct_scalar(value)))
        else:
            # 7.2 is a name here, as it is to yaml-to-mux.
            branch.values[str(loader.construct_scalar(key))] = loader.construct_object(value, deep=True)
    return branch


_Loader.add_constructor(_MUX, _branch)
_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _branch)
