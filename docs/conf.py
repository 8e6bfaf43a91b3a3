"""Sphinx's settings."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

project = "pytest-spapr"
extensions = ["myst_parser", "sphinx.ext.autodoc"]
html_theme = "furo"
html_show_copyright = False
html_title = project
myst_heading_anchors = 3
autodoc_member_order = "bysource"
autodoc_typehints = "signature"

_FIELD = re.compile(r"(?<=\S) (?=:(?:param|ivar|raises|returns)\b[^:`]*: )")


def _fields_apart(_app: Any, _what: str, _name: str, _thing: Any, _options: Any, lines: list[str]) -> None:
    """Give each field of a docstring a line of its own, where several stand on one."""
    lines[:] = [part for line in lines for part in _split(line)]


def _split(line: str) -> list[str]:
    first, *others = _FIELD.split(line)
    indent = " " * (len(line) - len(line.lstrip()))
    if not others:
        return [line]
    before = [first] if first.lstrip().startswith(":") else [first, ""]
    return [*before, *(indent + other for other in others)]


def setup(app: Any) -> None:
    app.connect("autodoc-process-docstring", _fields_apart)
