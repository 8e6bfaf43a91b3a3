"""What is to be done about known vulnerabilities of dependencies: from pip-audit's own JSON."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from ci import advisories
from ci.advisories import Decision, Unusable, __main__, audit, read_decisions

_VULNERABILITY = {
    "id": "PYSEC-2023-74",
    "fix_versions": ["2.31.0"],
    "aliases": ["CVE-2023-32681", "GHSA-j8r2-6x86-q33q"],
    "description": "Requests leaks credentials of a proxy.",
}
_SOUND = {"name": "packaging", "version": "25.0", "vulns": []}
_DAMAGED = {"name": "Requests", "version": "2.30.0", "vulns": [_VULNERABILITY]}
_OWN = {"name": "pytest-spapr", "skip_reason": "Dependency not found on PyPI and could not be audited: pytest-spapr (0.1.0)"}
_WHY = "nothing here speaks to a proxy"


def report(*packages: dict[str, Any]) -> dict[str, Any]:
    return {"dependencies": list(packages), "fixes": []}


def test_what_nobody_decided_about_is_open() -> None:
    found = audit(report(_SOUND, _DAMAGED, _OWN), [])
    assert __main__.lines(found) == [
        "OPEN     Requests 2.30.0: PYSEC-2023-74, CVE-2023-32681, GHSA-j8r2-6x86-q33q, mended in 2.31.0",
        "unknown to the service: pytest-spapr",
        "2 packages asked about, 1 vulnerabilities open, 0 decided",
    ]
    assert __main__.status(found, require=False) == 1


@pytest.mark.parametrize("name", ["PYSEC-2023-74", "CVE-2023-32681"])
def test_what_is_decided_is_told_and_no_failure(name: str) -> None:
    found = audit(report(_DAMAGED), [Decision(name, "requests", _WHY)])
    assert __main__.lines(found)[0].endswith(f"mended in 2.31.0: {_WHY}")
    assert __main__.status(found, require=True) == 0


@pytest.mark.parametrize(("name", "package"), [("CVE-2023-32681", "urllib3"), ("CVE-2023-32682", "requests")])
def test_a_decision_is_about_one_vulnerability_of_one_package(name: str, package: str) -> None:
    decision = Decision(name, package, _WHY)
    found = audit(report(_DAMAGED), [decision])
    assert (len(found.open), found.idle) == (1, (decision,))
    assert __main__.status(found, require=False) == 1


@pytest.mark.parametrize(("require", "status"), [(False, 0), (True, 1)])
def test_a_service_that_knows_nothing_was_not_asked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], require: bool, status: int
) -> None:
    file = tmp_path / "report.json"
    file.write_text(json.dumps(report(_OWN)))
    assert __main__.main([f"--report={file}", *(["--require"] if require else [])]) == status
    assert capsys.readouterr().out == "the vulnerability service could not be asked\n"


@pytest.mark.parametrize(
    "script", ["echo ERROR:pip_audit._cli:no connection >&2; exit 1", "echo '<html>'"], ids=["no network", "no JSON"]
)
def test_a_pip_audit_that_has_no_report_did_not_ask(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, script: str
) -> None:
    program = tmp_path / "python"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setattr("sys.executable", str(program))
    assert __main__.main([]) == 0
    said = capsys.readouterr()
    assert said.out == "the vulnerability service could not be asked\n"
    assert ("no connection" in said.err) is ("no connection" in script)


@pytest.mark.parametrize("damaged", [{}, {"dependencies": [{"version": "1", "vulns": [{}]}]}, {"dependencies": 3}])
def test_a_report_that_is_none_is_told(damaged: dict[str, Any]) -> None:
    with pytest.raises(Unusable, match="no report"):
        audit(damaged, [])


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('[[decision]]\nid = "CVE-1"\npackage = "a"\n', "a decision has id, package, why"),
        ('[[decision]]\nid = "CVE-1"\npackage = "a"\nwhy = " "\n', "each with words"),
        ('[[decisions]]\nid = "CVE-1"\n', "unknown: decisions"),
        ('[[decision]]\nid = "CVE-1"\npackage = "a"\nwhy = "x"\n' * 2, "decided twice"),
        ("[[decision", "decisions.toml: "),
    ],
)
def test_decisions_that_are_none_are_told(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "decisions.toml"
    path.write_text(text)
    with pytest.raises(Unusable, match=says):
        read_decisions(path)


def test_our_own_decisions_can_be_read() -> None:
    for decision in read_decisions(Path(advisories.__file__).with_name("decisions.toml")):
        assert len(decision.why) > 20


def test_the_script_can_be_run() -> None:
    script = Path(advisories.__file__).parents[1] / "audit"
    assert os.access(script, os.X_OK)
    assert subprocess.run(["bash", "-n", str(script)], check=True, capture_output=True).stderr == b""
