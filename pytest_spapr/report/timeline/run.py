"""One machine's timeline as it is shown: its records, and what the machine was."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from pytest_spapr.errors import ConfigError
from pytest_spapr.timeline import Lane, Record

#: The step with which a machine of a test begins. Its data says what the machine is.
MACHINE_FOR: Final = "machine for "
#: The step with which the test itself begins.
TEST_BEGINS: Final = "the test begins"
#: What a timeline's file is called among a test's artefacts, and its page beside it.
FILE, PAGE = "timeline.jsonl", "timeline.html"
_NEWEST: Final = frozenset({"core-refusal-heard", "dimm-refusal-heard", "dimm-reconfigure-heard"})


@dataclass(frozen=True, slots=True)
class Run:
    """A machine's records in order, from ``seq`` 0 on without a gap.

    :ivar name: what it is called where there is another one beside it.
    """

    records: Sequence[Record]
    name: str = ""

    @property
    def _about(self) -> Mapping[str, Any]:
        found = (r.data for r in self.records if r.lane is Lane.STEP and r.text.startswith(MACHINE_FOR) and r.data is not None)
        return next(found, {})

    @property
    def test(self) -> str:
        """The id of the test that the machine was for; empty where the records do not say."""
        names = (r.text.removeprefix(MACHINE_FOR) for r in self.records if r.lane is Lane.STEP and r.text.startswith(MACHINE_FOR))
        return next(names, "")

    @property
    def about(self) -> dict[str, str]:
        """What the machine was, by name, as far as the records say: QEMU, accelerator, guest image and kernel."""
        known = {name: str(self._about[name]) for name in ("qemu", "accel", "image", "kernel") if self._about.get(name)}
        return known or self._greeting()

    def _greeting(self) -> dict[str, str]:
        """Return what QEMU said of itself when its monitor greeted."""
        for record in self.records:
            if record.lane is Lane.QMP and record.data is not None and isinstance(greeting := record.data.get("QMP"), dict):
                version = greeting.get("version", {})
                numbers = version.get("qemu", {})
                number = ".".join(str(numbers.get(part, "?")) for part in ("major", "minor", "micro"))
                return {"qemu": f"QEMU {number}" + (f" ({version['package']})" if version.get("package") else "")}
        return {}

    @property
    def features(self) -> frozenset[str]:
        """The build's probed features; those of the newest QEMU where the records do not say."""
        known = self._about.get("features")
        return _NEWEST if known is None else frozenset(map(str, known))

    @property
    def begin(self) -> int:
        """The position of the record with which the test begins; that of the first where none does."""
        for wanted in (TEST_BEGINS, MACHINE_FOR):
            for record in self.records:
                if record.lane is Lane.STEP and record.text.startswith(wanted):
                    return record.seq
        return 0

    @property
    def end(self) -> float:
        """The time of the last record, in seconds."""
        return self.records[-1].time if self.records else 0.0


def read(path: Path, name: str = "") -> Run:
    """Return the run that a ``timeline.jsonl`` holds; ``path`` may be the directory of artefacts that has it.

    A last line that was cut off, by a full disk or the end of its writer, is left out. Costs half a second for 50,000 records.

    :raises ConfigError: it cannot be read, or it is no timeline; the message says which line and why.
    """
    file = path / FILE if path.is_dir() else path
    try:
        lines = file.read_text(encoding="utf-8").split("\n")
    except OSError as error:
        if several := sorted(found.parent.name for found in path.glob(f"*/{FILE}")):
            raise ConfigError(f"{path} has timelines of tests ({len(several)}): name one, as {path / several[0]}.") from error
        raise ConfigError(
            f"{file}: {error.strerror}. Expected a {FILE} of a test's artefacts, or the directory that has it."
        ) from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{file} is no timeline: {error}. Expected a {FILE}, JSON lines in UTF-8.") from error
    cut_off = lines.pop()
    records: list[Record] = []
    for number, line in enumerate(lines, start=1):
        records.append(_record(line, len(records), f"{file}, line {number}"))
    if cut_off:
        try:
            records.append(_record(cut_off, len(records), str(file)))
        except ConfigError:
            if not records:
                raise
    if not records:
        raise ConfigError(f"{file} is empty: nothing was observed.")
    return Run(records, name)


def _record(line: str, seq: int, where: str) -> Record:
    try:
        entry = json.loads(line)
        data = entry.get("data")
        if entry["seq"] != seq or not (data is None or isinstance(data, dict)):
            raise ValueError(f"expected record {seq}")
        return Record(seq, float(entry["time"]), Lane(entry["lane"]), str(entry["text"]), data)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        told = f"it has no {error}" if isinstance(error, KeyError) else str(error)
        raise ConfigError(f"{where} is no record of a timeline: {told}. Expected what a run's {FILE} has.") from error
