"""Which test covers which scenario: said by the test itself, where its docstring begins with ids, as ``C34, C35: what it shows``.

Tests are read, not imported: neither pytest nor QEMU is needed.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeAlias

from pytest_spapr.errors import ConfigError

_LOOKS_SO: Final = re.compile(r"[A-Z]\d+\b")
_ITEM: Final = r"[A-Z]\d\d(?:-[A-Z]\d\d)?"
_IDS: Final = re.compile(rf"(?P<ids>{_ITEM}(?:, {_ITEM})*)[.:](?:\s|$)")

_Documented: TypeAlias = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True, slots=True)
class Claim:
    """A test and the ids that its docstring begins with. :ivar test: as pytest names it. :ivar where: file and line, for messages."""

    test: str
    where: str
    ids: tuple[str, ...]


def read_claims(directory: Path, known: Collection[str]) -> list[Claim]:
    """Return what the tests below a directory say that they cover, file by file; 0.5 s for ten thousand lines.

    :param known: the ids that there are, in order; a range such as ``C01-C03`` stands for those of them that it spans.
    :raises ConfigError: an id that is not known, ids that cannot be read, or ids where no test is; all of them at once.
    """
    order = list(known)
    found: list[Claim] = []
    wrong: list[str] = []
    for path in sorted(directory.rglob("test_*.py")):
        place = path.relative_to(directory.parent)
        try:
            tree = ast.parse(path.read_bytes(), filename=str(place))
        except (OSError, SyntaxError, ValueError) as error:
            raise ConfigError(f"{place} cannot be read: {error}.") from error
        for node, test in _documented(tree, (str(place),)):
            text = ast.get_docstring(node) or ""
            if not _LOOKS_SO.match(text):
                continue
            where = f"{place}:{node.body[0].lineno}"
            ids, why = _ids(text, order)
            if not test:
                why = "only a test's docstring can begin with ids"
            if why:
                wrong.append(f"{where}: {why}: {text.splitlines()[0]}")
            else:
                found.append(Claim(test, where, ids))
    if wrong:
        raise ConfigError("\n".join(("docstrings of tests do not fit the checklist:", *wrong)))
    return found


def _documented(node: _Documented, names: tuple[str, ...]) -> Iterator[tuple[_Documented, str]]:
    """Yield all that can have a docstring, and how pytest names it if it is a test; else that is empty."""
    is_test = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test")
    yield node, "::".join(names) if is_test else ""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield from _documented(child, (*names, child.name))


def _ids(text: str, order: list[str]) -> tuple[tuple[str, ...], str]:
    """Return the ids that a docstring begins with, and what is wrong with them, if anything."""
    match = _IDS.match(text)
    if match is None:
        return (), "its ids cannot be read, expected e.g. 'C34, M32-M34: what it shows', or the ids and a full stop"
    found: list[str] = []
    for item in match["ids"].split(", "):
        first, _, last = item.partition("-")
        last = last or first
        if unknown := {first, last} - set(order):
            return (), f"the checklist has no {' and no '.join(sorted(unknown))}"
        spanned = [name for name in order if name[0] == first[0] and first <= name <= last]
        if first[0] != last[0] or not spanned:
            return (), f"{item} is no range, expected e.g. M32-M34"
        found.extend(spanned)
    return tuple(found), ""
