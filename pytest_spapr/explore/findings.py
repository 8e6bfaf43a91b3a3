"""What exploration finds, on disk: all that a person needs to have a violation again, and the histories to begin with next time."""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from pytest_spapr.errors import ConfigError
from pytest_spapr.explore import guest_script, script
from pytest_spapr.explore.history import Violation
from pytest_spapr.explore.shrink import Shrunk
from pytest_spapr.explore.steps import Command, Step, as_json, from_json

_HISTORY: Final = "history.json"
_WIDTH: Final = 120


@dataclass(frozen=True, kw_only=True, slots=True)
class Subject:
    """What was explored; of two builds that were to do the same, the one that broke.

    :ivar qemu: in words. :ivar command: how to run it. :ivar machine: its arguments. :ivar shape: the same for a test.
    :ivar accelerator: e.g. ``tcg``. :ivar version: e.g. ``(11, 1, 3)``. :ivar guest: in words; empty where there is none.
    :ivar onward: the build that machines move to, if it is another one.
    """

    qemu: str
    command: Sequence[str]
    machine: Sequence[str]
    shape: Mapping[str, Any]
    accelerator: str
    version: tuple[int, ...]
    guest: str = ""
    onward: script.Onward | None = None


def story(found: Shrunk, subject: Subject, origin: str) -> str:
    """Return one paragraph about a violation. :param origin: how it was found, e.g. with which seed."""
    violation = found.violation
    steps = len(violation.steps)
    last = f"`{violation.own[-1].step}` ({violation.subject})" if violation.steps else "none"
    onward = f", moving to {subject.onward.qemu}," if subject.onward else ""
    return (
        f"{subject.qemu}{onward} with {subject.accelerator}, {subject.guest or 'no guest'}: "
        f"after {steps} {'step' if steps == 1 else 'steps'}, the last of which is {last}: {violation.text}. "
        f"It breaks {found.rate}. {origin}"
    )


def write(directory: Path, found: Shrunk, subject: Subject, origin: str) -> str:
    """Write a violation into a directory of its own: its history, a script, a test, a report. Return the report's paragraph.

    :raises OSError: it cannot be written.
    """
    directory.mkdir(parents=True)
    violation, text = found.violation, story(found, subject, origin)
    name = directory.name.replace("-", "_")
    save(directory / _HISTORY, violation.steps, violation.signature)
    if subject.guest:
        plain = guest_script.script(violation, text, f"{name}.py", subject.machine)
        test = guest_script.test(violation, text, name, subject.shape)
        again = f"python3 {name}.py QMP-SOCKET, of a QEMU whose guest is up"
    else:
        plain = script.script(violation, text, f"{name}.py", subject.command, subject.machine, subject.onward)
        test = script.test(violation, text, name, subject.shape, subject.onward)
        again = f"python3 {name}.py {shlex.join(subject.command)}"
    (directory / f"{name}.py").write_text(plain, encoding="utf-8")
    (directory / f"test_{name}.py").write_text(test, encoding="utf-8")
    report = "\n".join(
        (
            *textwrap.wrap(text, _WIDTH),
            "",
            *(f"{number:3}. {step}" for number, step in enumerate((done.step for done in violation.own), start=1)),
            "",
            f"Again, without this package: {again}",
            f"As a test: pytest test_{name}.py",
            "",
            "If it is QEMU's and not ours, a row for pytest_spapr/hotplug/defects/ could begin so:",
            "",
            *_row(found, subject),
            "",
        )
    )
    (directory / "report.txt").write_text(report, encoding="utf-8")
    return text


def save(path: Path, steps: Sequence[Step], signature: str) -> None:
    """Write a history that breaks. :raises OSError: it cannot be written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # Half a history would be one that the next search complains of; another one may save the same at the same time.
    half = path.with_suffix(f".{os.getpid()}.half")
    half.write_text(json.dumps({"breaks": signature, "steps": as_json(steps)}, indent=1) + "\n", encoding="utf-8")
    half.rename(path)


def load(path: Path) -> tuple[tuple[Step, ...], str]:
    """Return a history that breaks, and its signature.

    :raises ConfigError: the file cannot be read, or is no such history.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        return from_json(data["steps"]), str(data["breaks"])
    except (OSError, ValueError, LookupError, TypeError, ConfigError) as error:
        raise ConfigError(f"{path} is no history of `spapr explore`: {error}. Give a {_HISTORY} that it wrote.") from error


def stored(directory: Path) -> Iterator[Path]:
    """Yield the histories that a store has, in the order of their names."""
    yield from sorted(directory.glob("*.json"))


def place(directory: Path, violation: Violation) -> Path:
    """Return the file that a store has for a violation."""
    name = hashlib.sha256("\n".join((violation.signature, *violation.shape)).encode()).hexdigest()
    return directory / f"{name[:16]}.json"


def _row(found: Shrunk, subject: Subject) -> Iterator[str]:
    violation = found.violation
    yield "    KnownDefect("
    yield '        id="",'
    yield f"        summary={violation.subject + ': ' + violation.text!r},"
    yield '        reference="",'
    version = subject.onward.version if subject.onward and violation.had_moved else subject.version
    yield f'        seen="QEMU {".".join(map(str, version))}",'
    yield '        since="",'
    yield "        fixed=NOT_YET,"
    yield "        versions=(((0, 0, 0), NEVER),),"
    if violation.ended:
        yield "        fatal=True,"
    if found.broke < found.played:
        yield "        certain=False,"
    commands = [(step.name, dict(step.arguments)) for done in violation.own if isinstance(step := done.step, Command)]
    if violation.ended and len(commands) == len(violation.steps):
        arguments = tuple(word for word in subject.machine if word not in ("-S",))
        yield f'        reproducer=Reproducer({arguments!r}, {tuple(commands)!r}, "dies"),'
    yield "    ),"
