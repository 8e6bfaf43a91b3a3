"""What a known defect is, and how it is shown without a guest."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

if TYPE_CHECKING:
    from pytest_spapr.qemu.build import QemuBuild

Version = tuple[int, int, int]

_SOCKET: Final = "/tmp/vfio-user.sock"  # noqa: S108 - for a person's shell


@dataclass(frozen=True, slots=True)
class Reproducer:
    """The least that shows a defect: QEMU, paused before the guest's first instruction, and QMP commands that are sent at once.

    :ivar arguments: QEMU's, besides those that all have. :ivar commands: name and arguments of each.
    :ivar symptom: what a QEMU with the defect does; one that hangs may die instead, for it depends on the order of its threads.
        One without it obeys the last command, ``quit``, and ends with status 0. One that refuses answers a command with an error.
    :ivar server: the device model of a vfio-user server that it connects to, whose socket is ``{socket}`` in arguments and commands.
    """

    arguments: tuple[str, ...]
    commands: tuple[tuple[str, Mapping[str, Any]], ...]
    symptom: Literal["dies", "hangs", "refuses"]
    server: str | None = None

    def argv(self, qemu: Sequence[str], socket: str = _SOCKET) -> list[str]:
        """Return the command to run. :param qemu: how to run QEMU, without arguments. :param socket: of the server that it needs."""
        arguments = (word.replace("{socket}", socket) for word in self.arguments)
        return [*qemu, "-machine", "pseries", *arguments, "-nodefaults", "-display", "none", "-S", "-qmp", "stdio"]

    def lines(self, socket: str = _SOCKET) -> list[str]:
        """Return what it reads on its standard input."""
        named = [("qmp_capabilities", {}), *self.commands, ("quit", {})]
        lines = [json.dumps({"execute": name} | ({"arguments": dict(given)} if given else {})) for name, given in named]
        return [line.replace("{socket}", socket) for line in lines]

    def shell(self, qemu: Sequence[str]) -> str:
        """Return the whole of it as one shell command."""
        sent = " \\\n  ".join(shlex.quote(line) for line in self.lines())
        served = (
            f"python3 -m pytest_spapr.vfio {self.server} {_SOCKET} & until test -S {_SOCKET}; do :; done\n" if self.server else ""
        )
        return f"{served}printf '%s\\n' {sent} |\n  {shlex.join(self.argv(qemu))}"


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


#: What a row says of a defect that no version is without, and of one that the newest QEMU still has.
NEVER: Final[Version] = (99, 0, 0)
NOT_YET: Final = "not by 11.1"
TCG: Final = frozenset({"tcg"})
#: A reset, for reproducers. It is done after its reply, and now and then after the next one's: it takes several.
RESET: Final[tuple[tuple[str, Mapping[str, Any]], ...]] = (("system_reset", {}), ("query-status", {}))
#: A command that fails has QEMU run what waits for RCU (drain_call_rcu in qmp_device_add): the end of PCI devices and PHBs.
DRAIN: Final[tuple[str, Mapping[str, Any]]] = ("device_add", {"driver": "no-such-device"})
