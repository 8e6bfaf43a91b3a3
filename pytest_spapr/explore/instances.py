"""Numbers that QEMU gives to state which has no name of its own: with gaps in them, a machine cannot move."""

from __future__ import annotations

from typing import Final

from pytest_spapr.hotplug.outcome import Kind

_CORE, _PHB, _BUS = "xive-tctx", "spapr_pci", "PCIBUS"
_OF_KIND: Final = {Kind.CORE: (_CORE,), Kind.PHB: (_PHB, _BUS)}
_OF_BRIDGE: Final = (_BUS,)


class Instances:
    """The numbers of what was added to a machine, for each name that state is saved by: the highest that is taken and one.

    They are QEMU's ``VMSTATE_INSTANCE_ID_ANY``: of cores' interrupt presenters, PHBs and PCI buses.
    """

    def __init__(self) -> None:
        self._numbers: dict[str, dict[str, int]] = {_CORE: {}, _PHB: {}, _BUS: {}}

    def add(self, device: str, kind: Kind, *, bridge: bool = False) -> None:
        """Number a device that came. :param device: its name."""
        for name in _OF_BRIDGE if bridge else _OF_KIND.get(kind, ()):
            numbers = self._numbers[name]
            numbers[device] = max(numbers.values(), default=0) + 1

    def remove(self, device: str) -> None:
        """Forget a device that went."""
        for numbers in self._numbers.values():
            numbers.pop(device, None)

    @property
    def same_elsewhere(self) -> bool:
        """Whether another QEMU, which counts anew in the order that they came in, finds the same numbers.

        Otherwise no migration succeeds: known defects ``xive-tctx-instance`` and ``phb-instance``.
        """
        return all(sorted(numbers.values()) == list(range(1, len(numbers) + 1)) for numbers in self._numbers.values())
