"""The trend of the nights: one HTML page that needs nothing else."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Final

from ci.night.history import Line

#: As many as fit on a page.
NIGHTS: Final = 30
_COLOURS: Final = {
    "PASS": "#2da44e",
    "WARN": "#bf8700",
    "SKIP": "#8c959f",
    "NOT RUN": "#57606a",
    "INTERRUPTED": "#8250df",
    "CANCEL": "#8250df",
    "ERROR": "#a40e26",
    "FAIL": "#cf222e",
}
_STYLE: Final = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem; color: #1b1f24; background: #fff; }
table { border-collapse: collapse; margin: 1rem 0; }
th, td { border: 1px solid #d0d7de; padding: .3rem .6rem; text-align: left; vertical-align: top; }
.green { background: #e9f7ec; } .red { background: #fbdfdf; } svg { vertical-align: middle; }
@media (prefers-color-scheme: dark) {
  body { color: #e6edf3; background: #0d1117; } th, td { border-color: #30363d; }
  .green { background: #12261a; } .red { background: #3a1518; }
}
"""
_WIDTH: Final = 240


def page(matrix: str, lines: Sequence[Line]) -> str:
    """Return the page: a row for each of the last nights, newest first, and what fails how often.

    :param lines: of one matrix, oldest first.
    """
    shown = list(reversed(lines[-NIGHTS:]))
    parts = [
        '<!doctype html><html lang="en"><head><meta charset="utf-8">',
        f"<title>Nights of {escape(matrix)}</title><style>{_STYLE}</style></head><body>",
        f"<h1>Nights of {escape(matrix)}</h1><p>{_legend()}</p>",
        "<table><thead><tr><th>night</th><th>minutes</th><th>tasks</th><th></th><th>tests</th><th>unplugs</th>"
        "<th>known defects met</th><th>new since the night before</th></tr></thead>",
    ]
    before = dict(zip((line.job for line in shown), shown[1:], strict=False))
    parts.extend(_row(line, before.get(line.job)) for line in shown)
    parts.append("</table>")
    parts.extend(_failing(shown))
    return "\n".join([*parts, "</body></html>\n"])


def _row(line: Line, before: Line | None) -> str:
    new = sorted(set(line.failed) - set(before.failed if before else ()))
    gone = sorted(set(before.failed if before else ()) - set(line.failed))
    changes = [f"fails: {name}" for name in new] + [f"fine again: {name}" for name in gone]
    cells = [
        f'<a href="{escape(line.directory)}/results.html">{escape(line.start[:16])}</a>',
        f"{line.seconds / 60:.0f}",
        _bar(line.statuses),
        *(escape(_counts(facts)) for facts in (line.statuses, line.states, line.outcomes, line.defects)),
        "<br>".join(map(escape, changes)),
    ]
    return f'<tr class="{"green" if line.green else "red"}">{"".join(f"<td>{cell}</td>" for cell in cells)}</tr>'


def _failing(lines: Sequence[Line]) -> Iterable[str]:
    """Yield which tasks were not fine in how many of the nights, most often first."""
    counts: dict[str, int] = {}
    for line in lines:
        for name in line.failed:
            counts[name] = counts.get(name, 0) + 1
    if counts:
        yield f"<h2>Not fine in the last {len(lines)} nights</h2><table>"
        for name, count in sorted(counts.items(), key=lambda pair: (-pair[1], pair[0])):
            yield f"<tr><td>{escape(name)}</td><td>{count}</td></tr>"
        yield "</table>"


def _bar(statuses: Mapping[str, int]) -> str:
    total, at, parts = sum(statuses.values()), 0.0, []
    for status, colour in _COLOURS.items():
        if count := statuses.get(status, 0):
            width = _WIDTH * count / total
            parts.append(f'<rect x="{at:.1f}" width="{width:.1f}" height="14" fill="{colour}"/>')
            at += width
    return f'<svg width="{_WIDTH}" height="14" role="img" aria-label="{escape(_counts(statuses))}">{"".join(parts)}</svg>'


def _counts(facts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in sorted(facts.items(), key=lambda pair: (-pair[1], pair[0])) if count)


def _legend() -> str:
    return " ".join(
        f'<svg width="14" height="14"><rect width="14" height="14" fill="{colour}"/></svg> {status}'
        for status, colour in _COLOURS.items()
    )
