"""The ground of exploration with a guest: a clone for each history, 0.1 s."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

from pytest_spapr.coverage import connectors
from pytest_spapr.coverage.replay import Driven
from pytest_spapr.explore.guest_play import GuestPlay
from pytest_spapr.explore.history import Violation
from pytest_spapr.explore.known import Avoid
from pytest_spapr.explore.search import Source
from pytest_spapr.hotplug.contract import Contract
from pytest_spapr.hotplug.pseries import PseriesMachine
from pytest_spapr.images.store import GuestImage
from pytest_spapr.machine import Harness
from pytest_spapr.progress import NullProgress
from pytest_spapr.qemu.argv import MachineSpec
from pytest_spapr.starts import Starter
from pytest_spapr.timeline import Timeline

if TYPE_CHECKING:
    from hypothesis.stateful import RuleBasedStateMachine

#: Each core that comes takes one of TCG's contexts for good (known defect ``tcg-contexts-run-out``).
SHAPE: Final[dict[str, Any]] = {"max_cpus": 32, "slots": 8, "max_memory": 8192}
#: MiB that such a machine may come to have, most often.
MEMORY: Final = 2048


class GuestScene:
    """A clone with its history."""

    def __init__(self, machine: PseriesMachine, contract: Contract) -> None:
        self._machine = machine
        try:
            connectors.watch(machine)
            self.play = GuestPlay(machine, contract)
        except BaseException:
            machine.close()
            raise

    def driven(self) -> Driven:
        return connectors.driven(self._machine)

    def write(self, jsonl: Path, text: Path) -> None:
        self._machine.timeline.write(jsonl, text)

    def close(self) -> None:
        self._machine.close()


class GuestGround:
    """Fresh clones of one build with one image.

    :param starter: makes them. :param contract: what is promised of them. :param forgotten: known defects that are to count as news.
    :param mode: machine type, CPU and the like, fields of their ``MachineSpec``.
    """

    def __init__(
        self,
        harness: Harness,
        accelerator: str,
        image: GuestImage,
        starter: Starter,
        contract: Contract,
        forgotten: Collection[str] = (),
        mode: Mapping[str, Any] = MappingProxyType({}),
    ) -> None:
        self._harness = harness
        self._spec = MachineSpec(accelerator=accelerator, **SHAPE, **mode)
        self._image = image
        self._starter = starter
        self._contract = contract
        self._forgotten = frozenset(forgotten)

    def scene(self) -> GuestScene:
        started = self._starter.start(self._harness, self._spec, self._image, Timeline(), NullProgress())
        return GuestScene(started.machine, self._contract)

    def rules(self, source: Source) -> type[RuleBasedStateMachine]:
        from pytest_spapr.explore.guest_rules import guest_rules_for

        return guest_rules_for(source)

    def known(self, violation: Violation) -> tuple[str, Avoid] | None:
        # Of those that the machine's end tells of, each comes of a core.
        if violation.defect is None or violation.defect in self._forgotten:
            return None
        return violation.defect, Avoid.CORE_REMOVAL
