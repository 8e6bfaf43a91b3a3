"""The files that a failed test leaves, and the part of the timeline that is shown with the failure."""

from __future__ import annotations

import hashlib
import re
import shlex
from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_spapr.errors import SpaprError
from pytest_spapr.timeline import Lane, Timeline

if TYPE_CHECKING:
    from pytest_spapr.hotplug.pseries import PseriesMachine
    from pytest_spapr.images.store import GuestImage
    from pytest_spapr.qemu.argv import MachineSpec
    from pytest_spapr.qemu.build import QemuBuild
    from pytest_spapr.slots import Lease

_SLUG_LENGTH = 80
_DMESG_SECONDS = 10.0
_SHOWN = 40
_SHOWN_AT_LEAST = 15
_SHOWN_WIDTH = 200
_KEPT = "kept.txt"


@dataclass(slots=True)
class Launch:
    """One machine of a test, or the try to start one.

    :ivar image: what it boots, if anything. :ivar machine: None while it starts, and when it did not.
    :ivar how: ``clone``, ``ahead`` (a clone that was prepared during the test before) or ``boot``. :ivar why: why it was booted
        although a clone was wanted. :ivar seconds: that the test waited for it. :ivar lease: the slots that it runs on.
    :ivar watched: whether it is on record what its connectors go through. :ivar began: the timeline's cursor when the test got the machine.
    :ivar booted: whether its guest was up by then.
    """

    spec: MachineSpec
    build: QemuBuild
    image: GuestImage | None
    timeline: Timeline
    machine: PseriesMachine | None = None
    how: str = "boot"
    why: str | None = None
    seconds: float = 0.0
    lease: Lease | None = None
    watched: bool = False
    began: int = 0
    booted: bool = False

    @property
    def about(self) -> dict[str, Any]:
        """What the machine is, as its timeline tells it: see ``report.timeline.run``."""
        facts: dict[str, Any] = {"qemu": self.build.version_text, "accel": self.spec.accelerator}
        if self.image is not None:
            facts |= {"image": Path(self.image.name).name, "kernel": self.image.kernel_text}
        return facts | {"features": sorted(self.build.features)}


def directory_for(root: Path, nodeid: str) -> Path:
    """Return a test's own directory: readable, short, and never that of another test."""
    slug = re.sub(r"[^A-Za-z0-9]+", "-", nodeid).strip("-")
    if len(slug) > _SLUG_LENGTH or slug != nodeid:
        digest = hashlib.sha256(nodeid.encode()).hexdigest()[:8]
        slug = f"{slug[-_SLUG_LENGTH:].strip('-')}-{digest}"
    return root / slug


def place(directory: Path, number: int) -> Path:
    """Return where the files of a test's machine are, the first of which has number 1."""
    return directory if number == 1 else directory / f"machine-{number}"


def save(directory: Path, launches: Sequence[Launch]) -> None:
    """Write everything known about a test's machines; a second machine's files go to ``machine-2`` and so on.

    Costs a guest command if the guest runs. What cannot be had is said in ``dmesg.txt``, never raised.

    :raises OSError: the directory cannot be written.
    """
    for number, launch in enumerate(launches, start=1):
        target = place(directory, number)
        make(target)
        (target / "argv.txt").write_text(_argv(launch) + "\n", encoding="utf-8")
        (target / "dmesg.txt").write_text(_dmesg(launch) + "\n", encoding="utf-8")
        for name, lanes in (
            ("console.txt", (Lane.CONSOLE,)),
            ("kernel.txt", (Lane.KERNEL,)),
            ("qmp.txt", (Lane.QMP, Lane.EVENT)),
        ):
            records = launch.timeline.since(0, *lanes)
            (target / name).write_text("".join(f"{record}\n" for record in records), encoding="utf-8")
        launch.timeline.write(target / "timeline.jsonl", target / "timeline.txt")


def note_kept(directory: Path, texts: Sequence[str]) -> None:
    """Write how to reach the test's machines that live on."""
    make(directory)
    (directory / _KEPT).write_text("\n\n".join(texts), encoding="utf-8")


def make(directory: Path) -> None:
    """Make a directory for artefacts; it, and what had to be made above it, is its user's alone: it has all that a guest said."""
    missing = [path for path in (directory, *directory.parents) if not path.exists()]
    for path in reversed(missing):
        path.mkdir(mode=0o700, exist_ok=True)


def present(root: Path) -> frozenset[tuple[str, int]]:
    """Return what is below ``root`` now, to tell later what came since: by no clock, which may be set meanwhile."""
    return frozenset((entry.name, entry.stat().st_mtime_ns) for entry in root.iterdir()) if root.is_dir() else frozenset()


def left_since(root: Path, before: Set[tuple[str, int]]) -> Iterator[tuple[str, list[str]]]:
    """Yield the tests' directories below ``root`` that were not :func:`present`, or not as they are, and how to reach machines that
    live on.
    """
    for directory in sorted(root.iterdir()) if root.is_dir() else ():
        if directory.is_dir() and (directory.name, directory.stat().st_mtime_ns) not in before:
            kept = directory / _KEPT
            yield str(directory), kept.read_text(encoding="utf-8").split("\n\n") if kept.exists() else []


def excerpt(launch: Launch) -> str:
    """Return the timeline's part that a failure is about: from the last attempt or step on, but neither a glimpse nor a flood."""
    records = launch.timeline.since()
    attempts = launch.machine.attempts if launch.machine is not None else []
    begin = attempts[-1].began if attempts else max((record.seq for record in records if record.lane is Lane.STEP), default=0)
    start = max(min(begin, len(records) - _SHOWN_AT_LEAST), len(records) - _SHOWN, 0)
    lines = [str(record)[:_SHOWN_WIDTH] for record in records[start:]]
    if launch.timeline.ended is not None:
        lines.append(f"the machine ended: {launch.timeline.ended}")
    return "\n".join(lines)


def _argv(launch: Launch) -> str:
    if launch.machine is None:
        return f"the machine did not start; it was to be {launch.spec}"
    return " \\\n  ".join(shlex.quote(word) for word in launch.machine.process.argv)


def _dmesg(launch: Launch) -> str:
    machine = launch.machine
    if machine is None or not machine.has_guest:
        return "not taken: no guest was up"
    try:
        if not machine.guest.usable:
            return "not taken: the machine was not running, see kernel.txt"
        return machine.guest.run("dmesg", seconds=_DMESG_SECONDS).stdout
    except SpaprError as error:
        return f"not taken: {error}"
