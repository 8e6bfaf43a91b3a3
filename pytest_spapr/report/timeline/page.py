"""The page: one HTML file that needs nothing else, no network and no server.

What a guest wrote stands in it as JSON, in ASCII, without any character that HTML could take for its own, and the script puts it on the
screen as text only. Should that ever fail, the page's own policy lets no script run but the one whose hash it names, and nothing load.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Sequence
from html import escape
from importlib import resources
from typing import Final

from pytest_spapr.report.timeline.divergence import Divergence
from pytest_spapr.report.timeline.lanes import TRACKS
from pytest_spapr.report.timeline.payload import payload
from pytest_spapr.report.timeline.run import Run

_SCRIPTS: Final = ("model.js", "tracks.js", "overview.js", "list.js", "main.js")
_SLOT: Final = re.compile(r"@@(\w+)@@")
_UNSAFE: Final = {"<": r"\u003c", ">": r"\u003e", "&": r"\u0026"}


def page(runs: Sequence[Run], *, divergence: Divergence | None = None, focus: int | None = None) -> str:
    """Return the page of one run, or of two side by side. Costs 0.3 s for 50,000 records.

    :param focus: the record of the first run that it opens at; by default where its test begins.
    """
    title = " and ".join(dict.fromkeys(run.test or "timeline" for run in runs))
    script = '"use strict";\n(() => {\n' + "\n".join(_file(name) for name in _SCRIPTS) + "\n})();"
    style = _colours() + _file("page.css")
    return filled(
        _file("page.html"),
        TITLE=escape(title),
        POLICY=policy(script, style),
        STYLE=style,
        SCRIPT=script,
        DATA=embedded(payload(runs, title, divergence, focus)),
    )


def policy(script: str, style: str) -> str:
    """Return what a page says of itself: that this script and this style are its own, and that nothing else runs or is loaded."""
    allowed = f"script-src {_hash(script)}; style-src {_hash(style)}"
    return escape(f"default-src 'none'; {allowed}; base-uri 'none'; form-action 'none'", quote=False)


def embedded(value: object) -> str:
    """Return JSON that can stand in an HTML element, whatever its strings are."""
    text = json.dumps(value, ensure_ascii=True, separators=(",", ":"))
    return re.sub("[<>&]", lambda found: _UNSAFE[found[0]], text)


def filled(template: str, **slots: str) -> str:
    """Return the template with its slots filled. What fills one is not looked at again."""
    return _SLOT.sub(lambda found: slots[found[1]], template)


def _file(name: str) -> str:
    return (resources.files(__package__) / "web" / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _colours() -> str:
    """Return the tracks' colours as variables, which both the style and the script use."""

    def of(attribute: str) -> str:
        return " ".join(f"--track-{number}: {getattr(track, attribute)};" for number, track in enumerate(TRACKS))

    return f":root {{ {of('light')} }}\n@media (prefers-color-scheme: dark) {{ :root {{ {of('dark')} }} }}\n"
