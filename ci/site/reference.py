"""Reference pages out of the code: options, marks, fixtures, the command."""

from __future__ import annotations

import argparse
import inspect
from collections.abc import Iterator, Mapping
from types import ModuleType
from typing import Any

import pytest_spapr
from pytest_spapr import fixtures, markers
from pytest_spapr.cli import make_parser
from pytest_spapr.config import OPTIONS
from pytest_spapr.qemu.argv import MachineSpec


def table(head: tuple[str, ...], rows: Iterator[tuple[str, ...]]) -> str:
    """Return a Markdown table."""
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in line) + " |" for line in lines)


def options() -> str:
    """Return what pytest can be told."""
    rows = (
        (
            f"`{option.option}" + ("" if option.kind == "flag" else f"={option.metavar or '|'.join(option.choices)}") + "`",
            option.help + ".",
        )
        for option in OPTIONS
    )
    return (
        "# Options of pytest\n\nA mark wins over the command line, that over the environment, that over the ini file. Every option "
        "`--spapr-x-y` is also `SPAPR_X_Y` in the environment and `spapr_x_y` in the ini file.\n\n"
        + table(("option", "meaning"), rows)
        + "\n"
    )


def marks() -> str:
    """Return the marks, and what shapes a machine with its defaults."""
    spec = MachineSpec()
    shape = ((f"`{key}`", f"`{getattr(spec, key)!r}`") for key in markers.SHAPE)
    told = ((f"`{name}`", text) for name, _, text in (line.partition(": ") for line in _marks()))
    return (
        f"# Marks\n\n{table(('mark', 'meaning'), told)}\n\n"
        f"## What shapes a machine\n\nThe arguments of the mark `spapr`, and of `launch_machine()`; sizes are in MiB.\n\n"
        f"{table(('argument', 'default'), shape)}\n"
    )


class _Lines:
    """Stands for a configuration, and keeps what is registered."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def addinivalue_line(self, _name: str, line: str) -> None:
        self.lines.append(line)


def _marks() -> list[str]:
    config: Any = _Lines()
    markers.register(config)
    lines: list[str] = config.lines
    return lines


def fixture_pages(module: ModuleType = fixtures) -> str:
    """Return the fixtures, with their scopes and documentation."""
    parts = ["# Fixtures"]
    for name, definition in _fixtures(module):
        documentation = inspect.cleandoc(definition.__doc__ or "")
        parts.append(f"## `{name}`\n\nScope: {definition._fixture_function_marker.scope}.\n\n{documentation}")
    return "\n\n".join(parts) + "\n"


def _fixtures(module: ModuleType) -> Iterator[tuple[str, Any]]:
    for name, value in vars(module).items():
        # pytest has no public name for what a decorated function becomes.
        marker = getattr(value, "_fixture_function_marker", None)
        if marker is not None and not name.startswith("_") and not marker.autouse:
            yield name, value


def command() -> str:
    """Return the help of ``spapr`` and of all that it can do."""
    parts = ["# The command `spapr`"]
    for words, one in _parsers("spapr", make_parser()):
        parts.append(f"## `{words}`\n\n```text\n{one.format_help().rstrip()}\n```")
    return "\n\n".join(parts) + "\n"


def _parsers(words: str, one: argparse.ArgumentParser) -> Iterator[tuple[str, argparse.ArgumentParser]]:
    yield words, one
    for action in one._actions:
        if isinstance(action, argparse._SubParsersAction):
            below: Mapping[str, argparse.ArgumentParser] = action.choices
            for name, sub in below.items():
                yield from _parsers(f"{words} {name}", sub)


def interface() -> str:
    """Return what the package exports, for Sphinx to look up: what a test meets first, and errors at the end."""
    names = [(name, getattr(pytest_spapr, name)) for name in pytest_spapr.__all__]
    errors = [name for name, value in names if isinstance(value, type) and issubclass(value, Exception)]
    parts = ["# Python interface\n\nWhat `pytest_spapr` exports; [fixtures](fixtures.md) are a page of their own."]
    ordered = [name for name, _ in names if name not in errors] + errors
    parts += [f"```{{eval-rst}}\n.. autoclass:: pytest_spapr.{name}\n   :members:\n```" for name in ordered]
    return "\n\n".join(parts) + "\n"
