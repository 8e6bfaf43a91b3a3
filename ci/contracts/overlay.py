"""A contract row as TOML, for ``--spapr-contract``."""

from __future__ import annotations

import json

from pytest_spapr.hotplug.expectation import Expectation


def toml(promised: Expectation) -> str:
    """Return a row that promises this of every build and every kernel."""
    words = {name: getattr(promised, name) for name in ("kind", "situation", "outcome", "cause", "reply", "qemu", "source")}
    lines = ["[[row]]", *(f"{name} = {_text(value)}" for name, value in words.items() if value is not None)]
    lines += [f"{name} = {str(getattr(promised, name)).lower()}" for name in ("asked", "waiting")]
    lines.append(f"guest = [{', '.join(map(_text, promised.guest))}]")
    events = (f"{{ name = {_text(rule.name)}, least = {rule.least}, most = {rule.most} }}" for rule in promised.events)
    lines.append(f"events = [{', '.join(events)}]")
    return "\n".join(lines) + "\n"


def _text(value: str) -> str:
    # What JSON escapes, TOML's basic strings escape in the same way.
    return json.dumps(value, ensure_ascii=False)
