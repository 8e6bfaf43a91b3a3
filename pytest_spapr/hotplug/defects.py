"""Known defects of QEMU and of guest kernels that the suite meets: what, where, since when, and how one is recognized.

A *certain* defect shows every time: its test is a strict xfail, so that a build that mends it is noticed. One that kills QEMU only
now and then has no such test: any test that ends with its signature is reported as xfailed with the reference, any other death of
QEMU is a failure.
"""

from __future__ import annotations

import signal
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from pytest_spapr.errors import MachineDied
from pytest_spapr.hotplug.outcome import Kind, Outcome

if TYPE_CHECKING:
    from pytest_spapr.hotplug.pseries import PseriesMachine
    from pytest_spapr.qemu.build import QemuBuild

Version = tuple[int, int, int]


@dataclass(frozen=True, kw_only=True, slots=True)
class KnownDefect:
    """A defect that is not ours.

    :ivar id: its name in ``@pytest.mark.spapr_defect(id)``. :ivar summary: what goes wrong, in one line.
    :ivar reference: where it is described or mended.
    :ivar versions: ranges of QEMU versions that have it, first one in and first one out; None where it is not QEMU's.
    :ivar accelerators: those under which it shows. :ivar fatal: whether it kills QEMU.
    :ivar certain: whether it shows every time. One that does not needs no mark: its signature is looked for when QEMU dies.
    """

    id: str
    summary: str
    reference: str
    versions: tuple[tuple[Version, Version], ...] | None = None
    accelerators: frozenset[str] = frozenset({"tcg", "kvm"})
    fatal: bool = False
    certain: bool = True

    def applies(self, build: QemuBuild, accelerator: str) -> bool:
        """Return whether a machine of this build and accelerator has the defect."""
        if accelerator not in self.accelerators:
            return False
        return self.versions is None or any(first <= build.version < last for first, last in self.versions)


_NEVER: Final[Version] = (99, 0, 0)
_TCG: Final = frozenset({"tcg"})

_ROWS: Final = (
    KnownDefect(
        id="tcg-core-removal",
        summary="after the removal of a core under TCG, QEMU dies: at once with a damaged heap, or at the next change of the memory map",
        reference=(
            "listeners of the dead CPU's address spaces stay registered, and its memory is freed while its thread runs; "
            "qemu-devel, Maydell, 2025-09-29 'Destroy CPU AddressSpaces on unrealize'; sound in 11.1"
        ),
        versions=(((0, 0, 0), (11, 0, 0)),),
        accelerators=_TCG,
        fatal=True,
        certain=False,
    ),
    KnownDefect(
        id="dimm-first-lmb-silent",
        summary="a DIMM's refusal is not signalled when its first LMB fails, so never for a DIMM of one LMB",
        reference="Linux dlpar_memory_remove_by_ic unisolates only LMBs that it had removed; 5.10 to 7.2, no QEMU compensates",
    ),
    KnownDefect(
        id="dimm-doubled-guest-error",
        summary="one refusal of a DIMM gives two DEVICE_UNPLUG_GUEST_ERROR events",
        reference="spapr_memory_unplug_rollback and drc_unisolate_logical both send it; QEMU 6.2 to 11.1 with Linux 5.14 and later",
        versions=(((6, 2, 0), _NEVER),),
    ),
    KnownDefect(
        id="tcg-contexts-run-out",
        summary="every vCPU ever made keeps one of max_cpus translation contexts: one core plug too many aborts QEMU",
        reference="tcg_register_thread: assertion failed: (n < tcg_max_ctxs); 5.2 to 11.1",
        accelerators=_TCG,
        fatal=True,
    ),
)

#: Every known defect by its id.
KNOWN_DEFECTS: Final[Mapping[str, KnownDefect]] = MappingProxyType({row.id: row for row in _ROWS})

_CRASH_SIGNALS: Final = (-signal.SIGABRT, -signal.SIGSEGV, -signal.SIGBUS)


def crash_defect(machine: PseriesMachine) -> KnownDefect | None:
    """Return the known defect that explains why this machine's QEMU died, or None: then the death is news."""
    end = machine.timeline.ended
    if not isinstance(end, MachineDied) or end.exit_status not in _CRASH_SIGNALS:
        return None
    defect = KNOWN_DEFECTS["tcg-core-removal"]
    if defect.applies(machine.build, machine.spec.accelerator) and _a_core_was_freed(machine):
        return defect
    return None


def _a_core_was_freed(machine: PseriesMachine) -> bool:
    return any(
        attempt.kind is Kind.CORE and attempt.outcome in (Outcome.REMOVED, Outcome.CRASHED) for attempt in machine.attempts
    ) or any(
        # A reset or a boot frees a pending core without an attempt of its own.
        "spapr-cpu-core" in record.text or "/thread[" in record.text
        for record in machine.timeline.since()
        if record.data is not None and record.data.get("event") == "DEVICE_DELETED"
    )
