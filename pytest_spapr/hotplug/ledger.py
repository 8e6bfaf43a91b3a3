"""What is remembered about one machine's devices: the attempts made on them, and the ids they have had."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from pytest_spapr.hotplug.attempt import Attempt
from pytest_spapr.hotplug.outcome import Outcome


class Ledger:
    """A machine's attempts. :ivar attempts: all of them, in order. :ivar observers: called with each when its verdict stands."""

    def __init__(self) -> None:
        self.attempts: list[Attempt] = []
        self.observers: list[Callable[[Attempt], None]] = []
        self._ids: Counter[str] = Counter()

    def new_id(self, prefix: str) -> str:
        """Return an id that no device of this machine has had."""
        self._ids[prefix] += 1
        return f"{prefix}{self._ids[prefix]}"

    def enter(self, attempt: Attempt) -> Attempt:
        """Enter an attempt, tell the observers, and return it."""
        self.attempts.append(attempt)
        for observer in self.observers:
            observer(attempt)
        return attempt

    def is_pending(self, device_id: str) -> bool:
        """Return whether the last attempt that QEMU accepted for the device left it pending: QEMU does not announce it again."""
        accepted = [a for a in self.attempts if a.device == device_id and a.outcome is not Outcome.REJECTED]
        return bool(accepted) and accepted[-1].outcome is Outcome.PENDING
