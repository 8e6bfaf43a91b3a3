"""Where a scenario plays: a machine, and who writes down what is seen."""

from __future__ import annotations

from pytest_spapr.battery.observation import Observation, observe
from pytest_spapr.errors import ConfigError
from pytest_spapr.guest.guest import Guest
from pytest_spapr.hotplug.attempt import Attempt
from pytest_spapr.hotplug.contract import Contract
from pytest_spapr.hotplug.device import Device
from pytest_spapr.hotplug.outcome import Outcome
from pytest_spapr.hotplug.pseries import PseriesMachine


class Stage:
    """One machine for one scenario.

    :param contract: what every step is held against that has a situation. :ivar seen: the observations, in order.
    """

    def __init__(self, machine: PseriesMachine, contract: Contract) -> None:
        self.machine = machine
        self.seen: list[Observation] = []
        self._contract = contract

    @property
    def guest(self) -> Guest:
        return self.machine.guest

    def unplug(self, device: Device, situation: str | None, *, step: str = "unplug") -> Attempt:
        """Unplug, write down what came of it, and return it.

        :param situation: the contract's name for it, None where no row is to be held against it. :param step: unique in its scenario.
        """
        since = self.machine.timeline.mark()
        return self._note(device, device.unplug(), since, situation, step)

    def follow(self, device: Device, attempt: Attempt, situation: str | None, *, step: str) -> Attempt:
        """See what becomes of a pending attempt, and write that down; nothing if it was not pending."""
        if attempt.outcome is not Outcome.PENDING:
            return attempt
        return self._note(device, device.follow(attempt), attempt.ended, situation, step)

    def outlast(self, device: Device, attempt: Attempt, seconds: float, situation: str | None, *, step: str) -> Attempt:
        """Let virtual time pass over an attempt, and write down what became of it."""
        return self._note(device, device.outlast(attempt, seconds), attempt.ended, situation, step)

    def _note(self, device: Device, attempt: Attempt, since: int, situation: str | None, step: str) -> Attempt:
        if any(one.step == step for one in self.seen):
            raise ValueError(f"the scenario has two steps that are called {step!r}")
        records = (record for record in self.machine.timeline.since(since) if record.seq < attempt.ended)
        differences = self._differences(attempt, situation)
        self.seen.append(observe(attempt, records, device.drcs, step=step, situation=situation, differences=differences))
        return attempt

    def _differences(self, attempt: Attempt, situation: str | None) -> list[str] | None:
        if situation is None:
            return None
        try:
            return self._contract.expect(attempt.kind, situation).differences(attempt)
        except ConfigError:
            # No row for this build and this kernel: it is told as such, and what was seen is worth as much.
            return None
