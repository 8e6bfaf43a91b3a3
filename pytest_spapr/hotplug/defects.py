"""Known defects of QEMU and of guest kernels that the suite meets: what, where, since when, and how one is recognized.

A *certain* defect shows every time: its test is a strict xfail, so that a build that mends it is noticed. One that kills QEMU only
now and then has no such test: any test that ends with its signature is reported as xfailed with the reference, any other death of
QEMU is a failure. One that can be shown without a guest has a reproducer, which ``tests/qemu`` holds against every build.
"""

from __future__ import annotations

import json
import re
import shlex
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, Literal

from pytest_spapr.errors import MachineDied
from pytest_spapr.hotplug.outcome import Kind, Outcome
from pytest_spapr.timeline import Lane

if TYPE_CHECKING:
    from pytest_spapr.hotplug.pseries import PseriesMachine
    from pytest_spapr.qemu.build import QemuBuild

Version = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class Reproducer:
    """The least that shows a defect: QEMU, paused before the guest's first instruction, and QMP commands that are sent at once.

    :ivar arguments: QEMU's, besides those that all have. :ivar commands: name and arguments of each.
    :ivar symptom: what a QEMU with the defect does; one that hangs may die instead, for it depends on the order of its threads.
        One without it obeys the last command, ``quit``, and ends with status 0.
    """

    arguments: tuple[str, ...]
    commands: tuple[tuple[str, Mapping[str, Any]], ...]
    symptom: Literal["dies", "hangs"]

    def argv(self, qemu: Sequence[str]) -> list[str]:
        """Return the command to run. :param qemu: how to run QEMU, without arguments."""
        return [*qemu, "-machine", "pseries", *self.arguments, "-nodefaults", "-display", "none", "-S", "-qmp", "stdio"]

    def lines(self) -> list[str]:
        """Return what it reads on its standard input."""
        named = [("qmp_capabilities", {}), *self.commands, ("quit", {})]
        return [json.dumps({"execute": name} | ({"arguments": dict(given)} if given else {})) for name, given in named]

    def shell(self, qemu: Sequence[str]) -> str:
        """Return the whole of it as one shell command."""
        sent = " \\\n  ".join(shlex.quote(line) for line in self.lines())
        return f"printf '%s\\n' {sent} |\n  {shlex.join(self.argv(qemu))}"


@dataclass(frozen=True, kw_only=True, slots=True)
class KnownDefect:
    """A defect that is not ours.

    :ivar id: its name in ``@pytest.mark.spapr_defect(id)``. :ivar summary: what goes wrong, in one line.
    :ivar reference: where it is described or mended.
    :ivar versions: ranges of QEMU versions that have it, first one in and first one out; None where it is not QEMU's.
    :ivar kernels: the same of the guest's kernel releases; None for any.
    :ivar accelerators: those under which it shows. :ivar fatal: whether it kills QEMU.
    :ivar certain: whether it shows every time. One that does not needs no mark: its signature is looked for when QEMU dies.
    :ivar seen: what it was seen with. :ivar since: the first release that has it, in words. :ivar fixed: the same of the first without.
    :ivar reproducer: what shows it without a guest, if anything does.
    """

    id: str
    summary: str
    reference: str
    seen: str
    since: str
    fixed: str
    versions: tuple[tuple[Version, Version], ...] | None = None
    kernels: tuple[tuple[Version, Version], ...] | None = None
    accelerators: frozenset[str] = frozenset({"tcg", "kvm"})
    fatal: bool = False
    certain: bool = True
    reproducer: Reproducer | None = None

    def applies(self, build: QemuBuild, accelerator: str, kernel: str | None) -> bool:
        """Return whether a machine of this build and accelerator has the defect with a guest of this kernel release, or without one."""
        if accelerator not in self.accelerators or not _in(self.versions, build.version):
            return False
        return self.kernels is None or (kernel is not None and _in(self.kernels, _numbers(kernel)))


def _in(ranges: tuple[tuple[Version, Version], ...] | None, found: tuple[int, ...]) -> bool:
    return ranges is None or any(first <= found < last for first, last in ranges)


def _numbers(kernel: str) -> tuple[int, ...]:
    # The rows of the contracts, which know it too, are not to be imported for the collection of tests.
    from pytest_spapr.hotplug.rows import version

    return version(kernel)


_NEVER: Final[Version] = (99, 0, 0)
_TCG: Final = frozenset({"tcg"})
_NOT_YET: Final = "not by 11.1"
_ONE_CORE: Final = ("-accel", "tcg,thread=multi", "-cpu", "power9_v2.0", "-smp", "1,maxcpus=8", "-m", "512")
_PLUG: Final = ("device_add", {"driver": "power9_v2.0-spapr-cpu-core", "id": "core1", "core-id": 1})
_UNPLUG: Final = ("device_del", {"id": "core1"})
_CARD: Final = ("device_add", {"driver": "virtio-rng-pci", "id": "card1", "bus": "pci.0"})
# A reset is done after its reply, and now and then after the next one's: it takes several.
_RESET: Final[tuple[tuple[str, Mapping[str, Any]], ...]] = (("system_reset", {}), ("query-status", {}))

_ROWS: Final = (
    KnownDefect(
        id="tcg-core-removal",
        summary="after the removal of a core under TCG, the next change of the memory map kills QEMU: a DIMM, a PCI device, a reset",
        reference=(
            "listeners of the dead CPU's address spaces stay registered; "
            "qemu-devel, Maydell, 2025-09-29 'Destroy CPU AddressSpaces on unrealize'"
        ),
        seen="QEMU 5.2.0 and 7.2.22",
        since="QEMU 5.2 or earlier",
        fixed="QEMU 10.2, and 10.0.13 or earlier",
        versions=(((0, 0, 0), (10, 0, 13)), ((10, 1, 0), (10, 2, 0))),
        accelerators=_TCG,
        fatal=True,
        certain=False,
        reproducer=Reproducer(
            _ONE_CORE,
            (_PLUG, _UNPLUG, _CARD, *_RESET * 4),
            "dies",
        ),
    ),
    KnownDefect(
        id="tcg-core-removal-heap",
        summary="the removal of a core under TCG damages QEMU's heap, of which it dies at once or later",
        reference=(
            "the vCPU's TLB and address spaces are freed while its thread still runs: cpu_remove_sync comes after the parent's "
            "unrealize in ppc_cpu_unrealize (target/ppc/cpu_init.c)"
        ),
        seen="QEMU 7.2.22, 10.0.13 and 10.2.2, most often once the guest has used the core",
        since="QEMU 7.2 or earlier",
        fixed="QEMU 11.1 or earlier",
        versions=(((0, 0, 0), (11, 0, 0)),),
        accelerators=_TCG,
        fatal=True,
        certain=False,
    ),
    KnownDefect(
        id="tcg-single-thread-core-removal",
        summary="with one TCG thread for all vCPUs, device_del of a core never returns: QMP hangs for ever, or QEMU aborts",
        reference="the thread that removes the vCPU waits for itself; -accel tcg,thread=single, which the plugin never asks for",
        seen="QEMU 5.2.0, 7.2.22, 10.0.13 and 11.1.3",
        since="QEMU 5.2 or earlier",
        fixed=_NOT_YET,
        versions=(((0, 0, 0), _NEVER),),
        accelerators=_TCG,
        fatal=True,
        certain=False,
        reproducer=Reproducer(("-accel", "tcg,thread=single", *_ONE_CORE[2:]), (_PLUG, _UNPLUG), "hangs"),
    ),
    KnownDefect(
        id="tcg-core-add",
        summary="now and then the plug of a core kills QEMU while a guest runs: it walks the TLB of a vCPU that has none yet",
        reference=(
            "cpu_exec_realizefn puts the vCPU on the list before tlb_init, and tb_gen_code of another one walks that list; "
            "mended by 4e4fa6c12d97 (7.2)"
        ),
        seen="QEMU 5.2.0, once in 70 plugs into fresh clones, whose vCPU has all of its code to translate",
        since="QEMU 5.2 or earlier",
        fixed="QEMU 7.2",
        versions=(((0, 0, 0), (7, 2, 0)),),
        accelerators=_TCG,
        fatal=True,
        certain=False,
    ),
    KnownDefect(
        id="tcg-busy-vcpu-device-add",
        summary="device_add does not return, and QMP with it, until each vCPU has been idle: not while the firmware or a busy guest runs",
        reference=(
            "drain_call_rcu in qmp_device_add (7bed89958bfb) waits for vCPUs that nobody kicks out of their loop; "
            "mended by dd47a8f654d8, https://gitlab.com/qemu-project/qemu/-/issues/650"
        ),
        seen="QEMU 5.2.0, not 7.2.22",
        since="QEMU 5.2",
        fixed="QEMU 6.2 and 6.1.1",
        versions=(((5, 2, 0), (6, 1, 1)),),
        accelerators=_TCG,
        certain=False,
        reproducer=Reproducer(_ONE_CORE, (("cont", {}), _PLUG), "hangs"),
    ),
    KnownDefect(
        id="tcg-smp-migration",
        summary="after a migration under TCG, a CPU that was idle takes no interrupt any more: a guest with several CPUs hangs",
        reference="seen from outside only: the CPU's interrupt is pending in its XIVE context (info pic), and its thread sleeps",
        seen="QEMU 10.0.13, not 7.2.22 and 11.1.3",
        since="QEMU 10.0 or earlier, later than 7.2",
        fixed="QEMU 11.1 or earlier",
        versions=(((10, 0, 0), (10, 1, 0)),),
        accelerators=_TCG,
    ),
    KnownDefect(
        id="tcg-pending-core-migration",
        summary="after a migration under TCG with the removal of a core pending, the guest hangs as it begins with the removal",
        reference="before 8.2 no decrementer travels, and the guest comes to the removal before its timers can be set going again",
        seen="QEMU 5.2.0; with 7.2.22 the timers are set going in time",
        since="QEMU 5.2 or earlier",
        fixed="QEMU 7.2 or earlier",
        versions=(((0, 0, 0), (7, 2, 0)),),
        accelerators=_TCG,
    ),
    KnownDefect(
        id="dimm-first-lmb-silent",
        summary="a DIMM's refusal is not signalled when its first LMB fails, so never for a DIMM of one LMB",
        reference="Linux dlpar_memory_remove_by_ic unisolates only LMBs that it had removed, and no QEMU compensates",
        seen="Linux 6.1, 6.12 and 7.2, with QEMU 5.2 to 11.1",
        since="Linux 5.10 or earlier",
        fixed="not by Linux 7.2",
    ),
    KnownDefect(
        id="phb-again-oops",
        summary="the removal of a PHB that came, went and came again kills drmgr: the kernel's rpaphp dereferences NULL",
        reference="an oops in __rpaphp_get_sensor_state, from get_adapter_status, when drmgr reads the slot's `presence`; no report found",
        seen="Linux 6.12.107 and 7.2.13, with 4 and 64 KiB pages, powerpc-utils 1.3.10, QEMU 11.1.3; not Linux 6.1.176",
        since="Linux 6.2 to 6.12",
        fixed="not by Linux 7.2",
        kernels=(((6, 2, 0), _NEVER),),
    ),
    KnownDefect(
        id="dimm-doubled-guest-error",
        summary="one refusal of a DIMM gives two DEVICE_UNPLUG_GUEST_ERROR events",
        reference="spapr_memory_unplug_rollback and drc_unisolate_logical both send it; with Linux 5.14 and later",
        seen="QEMU 7.2.22 and 11.1.3",
        since="QEMU 6.2",
        fixed=_NOT_YET,
        versions=(((6, 2, 0), _NEVER),),
    ),
    KnownDefect(
        id="tcg-contexts-run-out",
        summary="every vCPU ever made keeps one of max_cpus translation contexts: one core plug too many aborts QEMU",
        reference="tcg_register_thread: assertion failed: (n < tcg_max_ctxs)",
        seen="QEMU 5.2.0, 7.2.22, 10.0.13 and 11.1.3",
        since="QEMU 5.2 or earlier",
        fixed=_NOT_YET,
        versions=(((0, 0, 0), _NEVER),),
        accelerators=_TCG,
        fatal=True,
        reproducer=Reproducer(
            ("-accel", "tcg,thread=multi", "-cpu", "power9_v2.0", "-smp", "1,maxcpus=2", "-m", "512"),
            (_PLUG, _UNPLUG, _PLUG),
            "dies",
        ),
    ),
)

#: Every known defect by its id.
KNOWN_DEFECTS: Final[Mapping[str, KnownDefect]] = MappingProxyType({row.id: row for row in _ROWS})

_CRASH_SIGNALS: Final = (-signal.SIGABRT, -signal.SIGSEGV, -signal.SIGBUS)
# What the C library says of a heap that it finds damaged.
_HEAP: Final = re.compile(r"(free|malloc|realloc|calloc|munmap_chunk)\(\)|corrupt")


def crash_defect(machine: PseriesMachine) -> KnownDefect | None:
    """Return the known defect that explains why this machine's QEMU died, or None: then the death is news."""
    end = machine.timeline.ended
    if not isinstance(end, MachineDied) or end.exit_status not in _CRASH_SIGNALS:
        return None
    ids: tuple[str, ...] = ()
    if _a_core_was_freed(machine):
        # A damaged heap shows in other ways too, but where the C library names it, it is that.
        heap_only = any(_HEAP.search(word) for word in end.stderr)
        ids = ("tcg-core-removal-heap",) if heap_only else ("tcg-core-removal", "tcg-core-removal-heap")
    elif end.exit_status == -signal.SIGSEGV and "-spapr-cpu-core" in _plug_without_an_answer(machine):
        ids = ("tcg-core-add",)
    return _of_machine(ids, machine)


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
