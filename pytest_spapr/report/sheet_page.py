"""The behaviour sheet as one HTML file that needs nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape
from itertools import groupby
from typing import Final

from pytest_spapr.battery.compare import fact_in_words
from pytest_spapr.report.sheet import KINDS, TITLE, Cell, Row, Sheet

_STYLE: Final = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem; color: #1b1f24; background: #fff; }
table { border-collapse: collapse; margin: 1rem 0; }
th, td { border: 1px solid #d0d7de; padding: .35rem .6rem; text-align: left; vertical-align: top; max-width: 30rem; }
thead th { background: #f6f8fa; position: sticky; top: 0; }
.removed { background: #e9f7ec; } .refused { background: #fdf3d8; } .pending { background: #eef1f6; }
.rejected { background: #f6ecfa; } .reverted { background: #fde9d9; } .crashed { background: #fbdfdf; }
.other { outline: 3px solid #c62828; outline-offset: -3px; } .other li { color: #c62828; }
details { margin-top: .3rem; font-size: .85em; } dt { font-weight: 600; } dd { margin: 0 0 0 1rem; overflow-wrap: anywhere; }
@media (prefers-color-scheme: dark) {
  body { color: #e6edf3; background: #0d1117; } thead th { background: #161b22; } th, td { border-color: #30363d; }
  .removed { background: #12261a; } .refused { background: #2d2410; } .pending { background: #1a212b; }
  .rejected { background: #251a2b; } .reverted { background: #33210f; } .crashed { background: #3a1518; }
}
"""


def page(sheet: Sheet) -> str:
    """Return the sheet as HTML. What was not as promised is framed; the rest of a cell opens by a click."""
    parts = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8">',
        f"<title>{TITLE}</title><style>{_STYLE}</style></head><body>",
    ]
    parts.append(f"<h1>{TITLE}</h1><p>Observed on real guests by <code>spapr sheet</code> of {escape(sheet.made_by)}.</p>")
    parts.append("<table><thead><tr><th></th><th>QEMU</th><th>accelerator</th><th>guest image</th><th>Linux</th></tr></thead>")
    for column in sheet.columns:
        words = (column.name, column.qemu, column.accelerator, column.image, column.kernel)
        parts.append(f"<tr>{''.join(f'<td>{escape(word)}</td>' for word in words)}</tr>")
    parts.append("</table>")
    for kind, rows in groupby(sheet.rows(), key=lambda row: row.scenario.kind):
        parts.append(f"<h2>{KINDS[kind]}</h2><table><thead><tr><th>scenario</th><th>step</th>")
        parts.extend(f"<th>{escape(column.name)}</th>" for column in sheet.columns)
        parts.append("</tr></thead>")
        parts.extend(_rows(list(rows)))
        parts.append("</table>")
    return "\n".join([*parts, "</body></html>\n"])


def _rows(rows: list[Row]) -> Iterator[str]:
    for scenario, same in groupby(rows, key=lambda row: row.scenario):
        steps = list(same)
        for number, row in enumerate(steps):
            title = (
                f'<th rowspan="{len(steps)}">{escape(scenario.title)}<br><small>{escape(scenario.name)}</small></th>'
                if number == 0
                else ""
            )
            yield f"<tr>{title}<td>{escape(row.step)}</td>{''.join(map(_cell, row.cells))}</tr>"


def _cell(cell: Cell) -> str:
    if cell.one is None:
        return f"<td>{escape(cell.text)}</td>"
    other = " other" if cell.differences else ""
    items = "".join(f"<li>{escape(line)}</li>" for line in cell.differences)
    facts = {**cell.one.facts, "evidence": cell.one.evidence, "seconds": cell.one.seconds, "contract": _contract(cell)}
    told = "".join(f"<dt>{escape(name)}</dt><dd>{escape(fact_in_words(value))}</dd>" for name, value in facts.items())
    return (
        f'<td class="{escape(cell.one.outcome)}{other}">{escape(cell.text)}{f"<ul>{items}</ul>" if items else ""}'
        f"<details><summary>more</summary><dl>{told}</dl></details></td>"
    )


def _contract(cell: Cell) -> str:
    one = cell.one
    if one is None or one.situation is None:
        return "does not speak of this step"
    return one.situation if one.promised else f"{one.situation}: no row for this build and kernel"
