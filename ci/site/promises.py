"""What QEMU promises on hot-unplug, for each kind of device and each generation, out of the contracts' rows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cache
from typing import Final

from pytest_spapr.errors import ConfigError
from pytest_spapr.hotplug.contract import Contract
from pytest_spapr.hotplug.expectation import Expectation
from pytest_spapr.hotplug.outcome import Kind, Outcome
from pytest_spapr.hotplug.rows import packaged_rows
from pytest_spapr.qemu.behaviour import by_version

from .reference import table

#: Where a release does other than the one before it, for some row; the last one is the newest that the rows were seen with.
GENERATIONS: Final = ((5, 2), (6, 0), (6, 1), (6, 2), (9, 1), (11, 1))
_KERNEL: Final = "6.12"
_NAMES: Final = {
    Kind.CORE: "Cores",
    Kind.DIMM: "DIMMs",
    Kind.NVDIMM: "NVDIMMs",
    Kind.PCI: "PCI devices",
    Kind.PHB: "PCI host bridges",
}


def events() -> str:
    """Return the tables as a page."""
    parts = [
        "# Events, by device and QEMU generation",
        f"Made from the contracts' rows, which the suite holds against every build, for a guest with Linux {_KERNEL}. A generation stands "
        "for itself and for those after it, up to the next one; `=` is as in the one before. `~` is silence: nothing is said, and QEMU "
        "waits for the guest.",
    ]
    for kind in Kind:
        situations = sorted({row.expectation.situation for row in packaged_rows() if row.expectation.kind is kind})
        rows = ((situation, *_without_repeats(told(kind, situation, GENERATIONS))) for situation in situations)
        parts.append(f"## {_NAMES[kind]}\n\n" + table(("situation", *(_name(version) for version in GENERATIONS)), rows))
    return "\n\n".join(parts) + "\n"


def told(kind: Kind, situation: str, versions: Iterable[tuple[int, int]]) -> Iterator[str]:
    """Yield what is promised by each version, in short; nothing where such a build has no such device, or nobody saw it do that."""
    for version in versions:
        try:
            yield _in_short(_contract(version).expect(kind, situation))
        except ConfigError:
            yield ""


@cache
def _contract(version: tuple[int, int]) -> Contract:
    return Contract(by_version((*version, 0)) | _events_of(version), _KERNEL, qemu=version)


def _without_repeats(cells: Iterable[str]) -> Iterator[str]:
    before = None
    for cell in cells:
        yield "=" if cell and cell == before else cell
        before = cell


def _events_of(version: tuple[int, int]) -> set[str]:
    """Return the events that a release's schema has: 4b08cd567b brought one, 0f910b8724 took the other away."""
    names = {"DEVICE_UNPLUG_GUEST_ERROR"} if version >= (6, 2) else set()
    return names | ({"MEM_UNPLUG_ERROR"} if version < (9, 1) else set())


def _in_short(expectation: Expectation) -> str:
    shown = ", ".join(f"`{rule}`" if rule.least != 1 or rule.most != 1 else f"`{rule.name}`" for rule in expectation.events)
    if expectation.outcome is Outcome.PENDING and not shown:
        return "~"
    reply = f": “{expectation.reply}”" if expectation.reply else ""
    return f"{expectation.outcome}{reply}" + (f": {shown}" if shown else "")


def _name(version: tuple[int, int]) -> str:
    return ".".join(map(str, version))
