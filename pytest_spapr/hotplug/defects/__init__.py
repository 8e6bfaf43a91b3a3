"""Known defects of QEMU and of guest kernels that the suite meets: what, where, since when, and how one is recognized.

A *certain* defect shows every time: its test is a strict xfail, so that a build that mends it is noticed. One that kills QEMU only
now and then has no such test: any test that ends with its signature is reported as xfailed with the reference, any other death of
QEMU is a failure. One that can be shown without a guest has a reproducer, which ``tests/qemu`` holds against every build.
"""

from __future__ import annotations

import re
import signal
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from pytest_spapr.errors import MachineDied
from pytest_spapr.hotplug.defects import devices, tcg
from pytest_spapr.hotplug.defects.row import KnownDefect, Reproducer
from pytest_spapr.hotplug.outcome import Kind, Outcome
from pytest_spapr.timeline import Lane

if TYPE_CHECKING:
    from pytest_spapr.hotplug.pseries import PseriesMachine
    from pytest_spapr.qemu.build import QemuBuild

__all__ = [
    "CRASHES",
    "KNOWN_DEFECTS",
    "KnownDefect",
    "Reproducer",
    "core_defects",
    "crash_defect",
    "first_that_applies",
    "hang_defect",
]

KNOWN_DEFECTS: Final[Mapping[str, KnownDefect]] = MappingProxyType({row.id: row for row in (*tcg.ROWS, *devices.ROWS)})

#: Exit statuses, as ``Popen.returncode``, of a QEMU that crashed by itself.
CRASHES: Final = (-signal.SIGABRT, -signal.SIGSEGV, -signal.SIGBUS)
# What the C library says of a heap that it finds damaged.
_HEAP: Final = re.compile(r"(free|malloc|realloc|calloc|munmap_chunk)\(\)|corrupt")


def crash_defect(machine: PseriesMachine) -> KnownDefect | None:
    """Return the known defect that explains why this machine's QEMU died, or None: then the death is news."""
    end = machine.timeline.ended
    if not isinstance(end, MachineDied) or end.exit_status is None:
        return None
    ids: tuple[str, ...] = ()
    if _a_core_was_freed(machine):
        ids = core_defects(end.exit_status, end.stderr)
    elif end.exit_status == -signal.SIGSEGV and "-spapr-cpu-core" in _plug_without_an_answer(machine):
        ids = ("tcg-core-add",)
    return _of_machine(ids, machine)


def core_defects(exit_status: int, words: Iterable[str]) -> tuple[str, ...]:
    """Return the ids of the known defects that a QEMU may have died of from which a core had gone.

    :param exit_status: as ``Popen.returncode``. :param words: lines of its standard error.
    """
    if exit_status not in CRASHES:
        return ()
    # A damaged heap shows in other ways too, but where the C library names it, it is that.
    heap_only = any(_HEAP.search(word) for word in words)
    return ("tcg-core-removal-heap",) if heap_only else ("tcg-core-removal", "tcg-core-removal-heap")


def hang_defect(machine: PseriesMachine) -> KnownDefect | None:
    """Return the known defect that explains why this machine's QEMU answers no command any more, or None."""
    return _of_machine(("tcg-busy-vcpu-device-add",) if _plug_without_an_answer(machine) else (), machine)


def first_that_applies(ids: Sequence[str], build: QemuBuild, accelerator: str, kernel: str | None) -> KnownDefect | None:
    """Return the first of these known defects that such machines have, see :meth:`KnownDefect.applies`; None if they have none of them."""
    return next((row for row in map(KNOWN_DEFECTS.__getitem__, ids) if row.applies(build, accelerator, kernel)), None)


def _of_machine(ids: Sequence[str], machine: PseriesMachine) -> KnownDefect | None:
    return first_that_applies(ids, machine.build, machine.spec.accelerator, kernel=None) if ids else None


def _a_core_was_freed(machine: PseriesMachine) -> bool:
    return any(
        attempt.kind is Kind.CORE and attempt.outcome in (Outcome.REMOVED, Outcome.CRASHED) for attempt in machine.attempts
    ) or any(
        # A reset or a boot frees a pending core without an attempt of its own.
        "spapr-cpu-core" in record.text or "/thread[" in record.text
        for record in machine.timeline.since()
        if record.data is not None and record.data.get("event") == "DEVICE_DELETED"
    )


def _plug_without_an_answer(machine: PseriesMachine) -> str:
    """Return the driver of a ``device_add`` that QEMU never answered, or an empty string."""
    said = [record.data for record in machine.timeline.since(0, Lane.QMP) if record.data is not None]
    last = said[-1] if said else {}
    return str(last["arguments"]["driver"]) if last.get("execute") == "device_add" else ""
