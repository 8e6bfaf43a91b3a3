"""What must hold of a machine with a guest when nothing is the matter with it any more, and nothing is on its way."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Self

from pytest_spapr.explore.situation import Held
from pytest_spapr.hotplug.outcome import Kind, Presence
from pytest_spapr.hotplug.pseries import PseriesMachine


@dataclass(frozen=True, slots=True)
class Inventory:
    """What a guest has that devices add to. :ivar cpus: :ivar blocks: of memory: how many."""

    cpus: int
    blocks: int

    @classmethod
    def of(cls, machine: PseriesMachine) -> Self:
        """Ask a machine's guest."""
        return cls(len(machine.guest.cpus.present()), len(machine.guest.memory.blocks()))


def checks(machine: PseriesMachine, devices: Mapping[str, Held], first: Inventory) -> Iterator[tuple[str, str | None]]:
    """Check the views of all devices and what the guest has; yield for each check a line of a test, and what is wrong.

    :param devices: by name. :param first: what the guest had without them.
    """
    for name, held in devices.items():
        if held.pending is None:
            views = held.device.views()
            wrong = (views.qemu, views.guest) != (Presence.PRESENT, Presence.PRESENT)
            line = f"assert {name}.views() == Views(Presence.PRESENT, Presence.PRESENT)"
            yield line, f"at rest, a {held.device.kind}: {views}" if wrong else None
    if any(held.pending for held in devices.values()):
        return
    there = [held.device for held in devices.values()]
    now = Inventory.of(machine)
    for what, code, before, found, more in (
        ("CPUs", "machine.guest.cpus.present()", first.cpus, now.cpus, sum(one.kind is Kind.CORE for one in there)),
        (
            "blocks",
            "machine.guest.memory.blocks()",
            first.blocks,
            now.blocks,
            sum(len(one.drcs) for one in there if one.kind is Kind.DIMM),
        ),
    ):
        problem = f"at rest, the guest's {what}: expected {before + more}, found {found}"
        yield f"assert len({code}) == {what.lower()} + {more}", None if found == before + more else problem
