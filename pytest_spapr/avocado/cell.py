"""A cell of the nightly's matrix: what the suite is run with, and which of its modules.

A variant's parameters are the suite's options by their names, e.g. ``qemu``, ``image``, ``machine``, ``kernel_args``, ``accel``;
``tests``, the modules; and ``marks``, which of their tests (pytest's ``-m``).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from pytest_spapr import config
from pytest_spapr.avocado.matrix import Parameter
from pytest_spapr.errors import ConfigError

_TESTS: Final = "tests"
_MARKS: Final = "marks"
_OPTIONS: Final = {option.name: option for option in config.OPTIONS}
#: What a QEMU build and a guest image are made of. No other option says what is to be had before a test can run.
_SUPPLIES: Final = {"qemu": ("qemu",), "image": ("image", "kernel", "modules")}


@dataclass(frozen=True, slots=True)
class Supply:
    """What a cell needs before it can run, made once for all cells. :ivar name: good for a file. :ivar options: what it is made of."""

    name: str
    options: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class NightCell:
    """One cell. :ivar options: the suite's options, by name. :ivar tests: the modules that are run in it.

    :ivar marks: which tests of theirs, as pytest's ``-m`` has it; empty: those that are run without it.
    """

    options: Mapping[str, str | bool]
    tests: tuple[str, ...]
    marks: str = ""

    def arguments(self) -> list[str]:
        """Return the cell's options for pytest's command line."""
        options = [_OPTIONS[name].label(config.Source.COMMAND_LINE, value) for name, value in self.options.items()]
        return [*options, *(["-m", self.marks] if self.marks else [])]

    def supplies(self) -> list[Supply]:
        """Return the QEMU build and the guest image that the cell names."""
        found = []
        for what, names in _SUPPLIES.items():
            options = {name: str(self.options[name]) for name in names if name in self.options}
            if options:
                found.append(Supply(_slug(what, options), options))
        return found


def cell_of(parameters: Iterable[Parameter], where: str) -> NightCell:
    """Return the cell that these parameters describe.

    :param where: the variant, for errors.
    :raises ConfigError: for an unknown name, one with two values in places of which none is below the other, and one whose value is of the
        wrong kind.
    """
    chosen: dict[str, Parameter] = {}
    tests: dict[str, None] = {}
    for one in parameters:
        if one.name == _TESTS:
            if not isinstance(one.value, list) or not one.value or not all(isinstance(test, str) for test in one.value):
                raise ConfigError(f"{where}: {_TESTS} is {one.value!r}, expected a list of test modules.")
            # As yaml-to-mux has it: lists add up on the way down.
            tests |= dict.fromkeys(one.value)
            continue
        other = chosen.setdefault(one.name, one)
        if one.depth == other.depth and one.value != other.value:
            raise ConfigError(f"{where}: {one.name} is {other.value!r} and {one.value!r}: a cell can have one of them.")
        if one.depth > other.depth:
            chosen[one.name] = one
    marks = chosen.pop(_MARKS, None)
    options: dict[str, str | bool] = {}
    for one in chosen.values():
        options.update(_option(one.name, one.value, where))
    return NightCell(options, tuple(tests), _text(marks.name, marks.value, where) if marks else "")


def variant_cell(variant: Mapping[str, Any] | None) -> NightCell:
    """Return the cell of one of Avocado's variants, as it writes them down: of each leaf (path, name, value), also what it inherits.

    :raises ConfigError: as :func:`cell_of`.
    """
    if variant is None:
        return NightCell({}, ())
    parameters = [Parameter(*one) for _, leaf in variant["variant"] for one in leaf]
    return cell_of(parameters, f"variant {variant['variant_id']}")


def _option(name: str, value: Any, where: str) -> dict[str, str | bool]:
    option = _OPTIONS.get(name)
    if option is None:
        raise ConfigError(f"{where} knows no {name!r}. Allowed: {_TESTS}, {_MARKS}, {', '.join(_OPTIONS)}.")
    if option.kind == "flag":
        if not isinstance(value, bool):
            raise ConfigError(f"{where}: {name} is {value!r}, expected true or false.")
        return {name: True} if value else {}
    return {name: _text(name, value, where)}


def _text(name: str, value: Any, where: str) -> str:
    if not isinstance(value, str) or not value:
        # A version without quotes is a number to YAML: 11.10 would be 11.1.
        raise ConfigError(f'{where}: {name} is {value!r}, expected text. Put it in quotes: {name}: "{value}".')
    return value


def _slug(what: str, options: Mapping[str, str]) -> str:
    text = ",".join(options.values())
    plain = re.sub(r"[^A-Za-z0-9.+-]+", "-", text)
    # Two paths may differ in nothing but what was replaced.
    tail = "" if plain == text else f"-{hashlib.sha256(text.encode()).hexdigest()[:8]}"
    return f"{what}-{plain[-60:]}{tail}"
