"""Drawings out of the code: the state machines of connectors, and the house: which part of the package imports which."""

from __future__ import annotations

import ast
import itertools
import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Final
from xml.sax.saxutils import escape

from pytest_spapr.hotplug.drc_model import MACHINES, NOT_PENDING, DrcClass, Machine, State, Transition

_BOX: Final = (150, 44)
_STEP: Final = (235, 190)
_MARGIN: Final = (30, 30)
_BELOW: Final = 75
_QEMUS: Final = (Transition.ATTACH, Transition.UNPLUG)
# Column and row; columns that a class has no state in are left out.
_PLACES: Final[Mapping[State, tuple[int, int]]] = {
    State.EMPTY: (0, 0),
    State.UNUSABLE: (1, 0),
    State.POWER_ON: (1, 0),
    State.AVAILABLE: (2, 0),
    State.UNISOLATED: (3, 0),
    State.CONFIGURED: (4, 0),
    State.AVAILABLE_PENDING: (2, 1),
    State.UNISOLATED_PENDING: (3, 1),
    State.CONFIGURED_PENDING: (4, 1),
}
_STYLE: Final = """
text { font: 13px sans-serif; text-anchor: middle; fill: #222 }
.box { fill: #fff; stroke: #444 } .pending { fill: #fdf0d5; stroke: #b07d1a }
.guest { stroke: #1f6f43; fill: none } .qemu { stroke: #a0352c; fill: none }
text.guest { fill: #1f6f43; stroke: none } text.qemu { fill: #a0352c; stroke: none }
text.moves { font-size: 11px; paint-order: stroke; stroke: #fff; stroke-width: 4px }
"""
_HEADS: Final = "".join(
    f'<marker id="{who}" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="8" markerHeight="8" orient="auto">'
    f'<path d="M0,0 L8,4 L0,8 z" fill="{colour}"/></marker>'
    for who, colour in (("guest", "#1f6f43"), ("qemu", "#a0352c"), ("import", "#888"))
)


def connector(drc_class: DrcClass) -> str:
    """Return the state machine of a class of connectors as SVG: what QEMU does in red, what the guest does in green.

    Left out is what changes nothing, and the reset, which is the same everywhere.

    :raises ValueError: it is not, any more.
    """
    machine = MACHINES[drc_class]
    _require_plain_reset(machine)
    states = [state for state in State if state in machine]
    moves = [
        (before, after, transition)
        for before, table in machine.items()
        for transition, after in table.items()
        if after is not before and transition is not Transition.RESET
    ]
    pairs = itertools.groupby(sorted(moves, key=lambda move: (move[0], move[1])), key=lambda move: move[:2])
    corners = _corners(states)
    lines = [line for (one, other), found in pairs for line in _move(corners[one], corners[other], [move[2] for move in found])]
    width = max(x for x, _ in corners.values()) + _BOX[0] + _MARGIN[0]
    height = _MARGIN[1] + _STEP[1] + _BOX[1] + _BELOW
    return _svg(width, height, [*lines, *(line for state in states for line in _box(state, corners[state]))])


def _require_plain_reset(machine: Machine) -> None:
    for state, table in machine.items():
        expected = State.EMPTY if state in NOT_PENDING else None if state is State.EMPTY else State.CONFIGURED
        if table.get(Transition.RESET) is not expected:
            raise ValueError(
                f"a reset in {state} leads to {table.get(Transition.RESET)}: the text below the drawing says {expected}"
            )


def _corners(states: Iterable[State]) -> dict[State, tuple[int, int]]:
    places = {state: _PLACES[state] for state in states}
    columns = sorted({column for column, _ in places.values()})
    return {
        state: (_MARGIN[0] + columns.index(column) * _STEP[0], _MARGIN[1] + row * _STEP[1])
        for state, (column, row) in places.items()
    }


def _box(state: State, corner: tuple[int, int]) -> Iterator[str]:
    x, y = corner
    kind = "pending" if state in NOT_PENDING else "box"
    yield f'<rect class="{kind}" x="{x}" y="{y}" width="{_BOX[0]}" height="{_BOX[1]}" rx="8"/>'
    yield f'<text x="{x + _BOX[0] / 2}" y="{y + _BOX[1] / 2 + 5}">{escape(state)}</text>'


def _move(before: tuple[int, int], after: tuple[int, int], transitions: list[Transition]) -> Iterator[str]:
    """Yield a bent arrow: there and back are beside each other, and what leaps over a state goes around it."""
    who = "qemu" if transitions[0] in _QEMUS else "guest"
    (x1, y1), (x2, y2) = ((x + _BOX[0] / 2, y + _BOX[1] / 2) for x, y in (before, after))
    length = math.dist((x1, y1), (x2, y2))
    bend = 28 if y1 == y2 and length <= _STEP[0] else 70 * length / _STEP[0]
    middle = ((x1 + x2) / 2 + (y2 - y1) / length * bend, (y1 + y2) / 2 - (x2 - x1) / length * bend)
    start, end = _edge((x1, y1), middle), _edge((x2, y2), middle)
    label = tuple((s + 2 * m + e) / 4 for s, m, e in zip(start, middle, end, strict=True))
    yield f'<path class="{who}" marker-end="url(#{who})" d="M{_point(start)} Q{_point(middle)} {_point(end)}"/>'
    # Beside an arrow that goes up or down, else on it.
    anchor = "middle" if x1 != x2 else "start" if y2 > y1 else "end"
    yield (
        f'<text class="moves {who}" style="text-anchor: {anchor}" x="{label[0]:.0f}" y="{label[1] + 4:.0f}">'
        f"{escape(', '.join(transitions))}</text>"
    )


def _edge(centre: tuple[float, ...], towards: tuple[float, ...]) -> tuple[float, float]:
    """Return where the line from the middle of a box leaves it."""
    dx, dy = towards[0] - centre[0], towards[1] - centre[1]
    part = min(half / abs(d) for half, d in ((_BOX[0] / 2, dx), (_BOX[1] / 2, dy)) if d)
    return centre[0] + dx * part, centre[1] + dy * part


def _point(place: tuple[float, ...]) -> str:
    return f"{place[0]:.0f},{place[1]:.0f}"


def _svg(width: float, height: float, lines: list[str]) -> str:
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}">'
    return "\n".join([head, f"<style>{_STYLE}</style><defs>{_HEADS}</defs>", *lines, "</svg>"]) + "\n"


def house(package: Path) -> str:
    """Return the package's parts as SVG, each above all that it imports; what it reaches by another part has no arrow of its own.

    :param package: the directory of the package. :raises ValueError: parts import each other in a circle.
    """
    imports = _imports(package)
    floors = _floors(imports)
    places: dict[str, tuple[float, float]] = {}
    width, pitch = 760, (190, 80)
    for level, rooms in enumerate(reversed(floors)):
        for number, room in enumerate(rooms):
            places[room] = (width / 2 + (number - (len(rooms) - 1) / 2) * pitch[0], 30 + level * pitch[1])
    lines = [
        f'<path stroke="#bbb" marker-end="url(#import)" d="M{places[one][0]:.0f},{places[one][1] + 15:.0f} '
        f'L{places[other][0]:.0f},{places[other][1] - 15:.0f}"/>'
        for one, others in imports.items()
        for other in sorted(others)
        if not any(other in _reached(imports, between) for between in others)
    ]
    for room, (x, y) in places.items():
        lines.append(f'<rect class="box" x="{x - 55:.0f}" y="{y - 15:.0f}" width="110" height="30" rx="6"/>')
        lines.append(f'<text x="{x:.0f}" y="{y + 5:.0f}">{escape(room)}</text>')
    return _svg(width, 60 + (len(floors) - 1) * pitch[1], lines)


def _imports(package: Path) -> dict[str, set[str]]:
    """Return which part imports which, without what is for the type checker alone and the faces, which may import all."""
    parts: dict[str, set[str]] = {path.parent.name: set() for path in package.glob("*/__init__.py")}
    for part in parts:
        for module in (package / part).rglob("*.py"):
            for name in _imported(ast.parse(module.read_text(encoding="utf-8"))):
                words = name.split(".")
                if words[0] == package.name and len(words) > 1 and words[1] in parts and words[1] != part:
                    parts[part].add(words[1])
    return parts


def _reached(imports: Mapping[str, set[str]], part: str) -> set[str]:
    return imports[part].union(*(_reached(imports, below) for below in imports[part]))


def _imported(tree: ast.AST) -> Iterator[str]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            continue
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        else:
            yield from _imported(node)


def _floors(imports: Mapping[str, set[str]]) -> list[list[str]]:
    """Return the parts from the ground up, each as low as what it imports lets it be."""
    floors: list[list[str]] = []
    placed: set[str] = set()
    while len(placed) < len(imports):
        floor = sorted(part for part, below in imports.items() if part not in placed and below <= placed)
        if not floor:
            raise ValueError(f"these parts import each other in a circle: {sorted(set(imports) - placed)}")
        floors.append(floor)
        placed.update(floor)
    return floors
