"""What pip-audit finds about the installed packages, held against what was decided about it."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any


class Unusable(Exception):
    """A file of decisions, or what pip-audit wrote, is not what it should be."""


@dataclass(frozen=True, slots=True)
class Decision:
    """That a vulnerability does not concern this package. :ivar id: as pip-audit names it, or an alias. :ivar why: the reason."""

    id: str
    package: str
    why: str


@dataclass(frozen=True, slots=True)
class Finding:
    """A known vulnerability of an installed package. :ivar names: its id and its aliases. :ivar fixed: the versions without it."""

    package: str
    version: str
    names: tuple[str, ...]
    fixed: tuple[str, ...]

    def __str__(self) -> str:
        mended = f"mended in {', '.join(self.fixed)}" if self.fixed else "not mended yet"
        return f"{self.package} {self.version}: {', '.join(self.names)}, {mended}"


@dataclass(frozen=True, slots=True)
class Audit:
    """What came of it.

    :ivar asked: packages that the service knows. :ivar unknown: those that it does not. :ivar open: findings without a decision.
    :ivar decided: those with one. :ivar idle: decisions about nothing that is found any more.
    """

    asked: int
    unknown: tuple[str, ...]
    open: tuple[Finding, ...]
    decided: tuple[tuple[Finding, Decision], ...]
    idle: tuple[Decision, ...]


def read_decisions(path: Path) -> list[Decision]:
    """Return the decisions of a file.

    :raises Unusable: one lacks something, has something else, or is there twice.
    """
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise Unusable(f"{path}: {error}") from error
    wanted = {field.name for field in fields(Decision)}
    found = []
    for table in tables.pop("decision", []):
        if set(table) != wanted or not all(isinstance(value, str) and value.strip() for value in table.values()):
            raise Unusable(f"{path}: a decision has {', '.join(sorted(wanted))}, each with words; not {table}")
        found.append(Decision(**table))
    if tables:
        raise Unusable(f"{path}: unknown: {', '.join(tables)}")
    if len({(one.id, canonical(one.package)) for one in found}) < len(found):
        raise Unusable(f"{path}: decided twice")
    return found


def audit(report: Mapping[str, Any], decisions: Sequence[Decision]) -> Audit:
    """Hold what pip-audit found (``--format=json``) against the decisions.

    :raises Unusable: the report is none.
    """
    try:
        packages = report["dependencies"]
        unknown = tuple(sorted(package["name"] for package in packages if "skip_reason" in package))
        findings = [finding for package in packages for finding in _findings(package)]
    except (KeyError, TypeError) as error:
        raise Unusable(f"what pip-audit wrote is no report of its: {error!r}") from error
    decided = [(finding, decision) for finding in findings for decision in decisions if _about(decision, finding)]
    settled, used = [finding for finding, _ in decided], [decision for _, decision in decided]
    return Audit(
        asked=len(packages) - len(unknown),
        unknown=unknown,
        open=tuple(finding for finding in findings if finding not in settled),
        decided=tuple(decided),
        idle=tuple(decision for decision in decisions if decision not in used),
    )


def canonical(name: str) -> str:
    """Return a distribution's name as all ways to write it are compared."""
    return re.sub(r"[-_.]+", "-", name).lower()


def _findings(package: Mapping[str, Any]) -> Iterator[Finding]:
    for found in package.get("vulns", ()):
        names = (found["id"], *found.get("aliases", ()))
        yield Finding(package["name"], package["version"], names, tuple(found.get("fix_versions", ())))


def _about(decision: Decision, finding: Finding) -> bool:
    return decision.id in finding.names and canonical(decision.package) == canonical(finding.package)
