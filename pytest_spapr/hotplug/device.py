"""What all hot-pluggable devices have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

from pytest_spapr.deadline import Deadline
from pytest_spapr.errors import DeadlineExpired
from pytest_spapr.hotplug import drc
from pytest_spapr.hotplug.attempt import Attempt, Views
from pytest_spapr.hotplug.evidence import Clue
from pytest_spapr.hotplug.judge import Judge
from pytest_spapr.hotplug.ledger import Ledger
from pytest_spapr.hotplug.outcome import Kind, Presence
from pytest_spapr.machine import Machine
from pytest_spapr.timeline import Record


class NotConfigured(AssertionError):
    """The guest did not take a device that was plugged in."""


class Device(ABC):
    """A device behind one or more DRCs of one machine.

    :ivar id: its id in QEMU. :ivar drcs: the indexes of its connectors, lowest first.
    """

    kind: ClassVar[Kind]

    def __init__(self, machine: Machine, ledger: Ledger, device_id: str, drcs: tuple[int, ...]) -> None:
        self.machine = machine
        self._ledger = ledger
        self.id = device_id
        self.drcs = drcs

    @property
    def qom_path(self) -> str:
        """Its place in QEMU's object tree. A device that was there from the start has no id of its own but this path."""
        return self.id if self.id.startswith("/") else f"/machine/peripheral/{self.id}"

    @property
    def configured(self) -> bool:
        """Whether the guest has all of the device now. Costs a guest command or two."""
        return self.guest_presence() is Presence.PRESENT

    @property
    def waiting(self) -> bool | None:
        """Whether QEMU waits now for the guest to give this device back (``unplug_requested``); None if it cannot say.

        It cannot when it is dead, and while the machine migrates. Costs 0.02 s, in which a machine that runs is paused (``qemu.vmstate``).
        """
        if self.machine.timeline.ended is not None:
            return None
        # The connector of a device that is gone may have another one by now.
        gone = self.qemu_presence() is Presence.ABSENT
        return False if gone else drc.waiting(self.machine.qmp, self.drcs)

    def unplug(self, *, seconds: float | None = None) -> Attempt:
        """Ask for the device's removal and return what came of it, as soon as that is certain.

        Removed and refused devices answer in 0.1 to 0.5 s under TCG (a PCI device in about 4 s: drmgr sleeps 3 s); silence is
        told from the guest's own evidence, not by waiting. The three views are compared at the end. The machine's timeline has
        every record that the verdict rests on.

        :param seconds: the backstop; default: the accelerator's budget for an unplug.
        """
        return self._ledger.enter(self._judge(seconds).attempt())

    def follow(self, attempt: Attempt, *, seconds: float | None = None) -> Attempt:
        """Wait on, without a new command, for what becomes of a pending attempt after its cause was removed.

        The attempt that is returned has all events since the first command.
        """
        found = self._judge(seconds).follow(attempt)
        return attempt if found is attempt else self._ledger.enter(found)

    def outlast(self, attempt: Attempt, seconds: float) -> Attempt:
        """Wait until an attempt that left the device in place is so old, without a new command, and return it as it then is.

        What was PENDING is so still if QEMU waits for the guest, or REVERTED if it has given up and told nobody. An event ends the wait
        before. The age counts from QEMU's answer to the ``device_del``, by the machine's virtual clock, which QEMU's own timers run by:
        it stands still while the machine is paused.

        :param seconds: the age, in seconds.
        :raises ConfigError: it is neither pending nor refused nor reverted. :raises MachineError: the machine does not run.
        """
        return self._ledger.enter(self._judge(None).outlast(attempt, seconds))

    def await_configured(self, since: int, deadline: Deadline | None = None) -> None:
        """Wait until the guest says, after the cursor, that it has the device; then look at the guest to see that it is true.

        :param deadline: default: the accelerator's budget for a plug.
        :raises NotConfigured: the guest says that it failed, says nothing until the deadline, or its view says otherwise.
        """
        deadline = deadline or Deadline(self.machine.budgets.plug)
        seen: list[str] = []

        def decide(record: Record) -> Clue | None:
            clue = self.plug_clue(record, seen)
            return clue if clue in (Clue.DONE, Clue.FAILED) else None

        try:
            clue = self.machine.timeline.wait(decide, since=since, deadline=deadline, what=f"the guest to configure {self.id}")
        except DeadlineExpired as error:
            raise NotConfigured(f"the guest did not configure {self.kind} {self.id}: {error}") from error
        if clue is Clue.FAILED:
            raise NotConfigured(f"the guest failed to configure {self.kind} {self.id}: {'; '.join(seen)}")
        if not self.kind.by_drmgr:
            self.machine.guest.settle()
        if (presence := self.guest_presence()) is not Presence.PRESENT:
            raise NotConfigured(f"the guest says that it configured {self.kind} {self.id}, but its sysfs says {presence}")

    def unannounced(self, since: int) -> str | None:  # noqa: ARG002 - for those kinds that have a say
        """Return the evidence if QEMU told the guest nothing of an unplug since the cursor; None if it tells of each."""
        return None

    def views(self) -> Views:
        """Return QEMU's and the guest's view, each asked now."""
        machine = self.machine
        if machine.timeline.ended is not None:
            return Views(Presence.UNKNOWN, Presence.UNKNOWN)
        asked = machine.has_guest and machine.running
        return Views(self.qemu_presence(), self.guest_presence() if asked else Presence.UNKNOWN)

    def qemu_presence(self) -> Presence:
        """Return QEMU's view: its QOM tree and, where there is one, the query command of the device's kind. They must agree."""
        parent, _, name = self.qom_path.rpartition("/")
        children = self.machine.qmp.execute("qom-list", {"path": parent})
        answers = {any(child["name"] == name for child in children), self._queried()}
        return Presence.PARTIAL if len(answers) > 1 else Presence.PRESENT if answers.pop() else Presence.ABSENT

    def _judge(self, seconds: float | None) -> Judge:
        budget = self.machine.budgets.unplug if seconds is None else seconds
        return Judge(self, self.machine, pending=self.is_pending(), seconds=budget)

    def is_pending(self) -> bool:
        """Return whether an earlier command has QEMU wait for the guest to give this device back."""
        return self._ledger.is_pending(self.id)

    @abstractmethod
    def guest_presence(self) -> Presence:
        """Return the guest's view, from its sysfs."""

    @abstractmethod
    def plug_clue(self, record: Record, seen: list[str]) -> Clue | None:
        """Return what a record says of the guest's taking this device; ``seen`` collects the lines that matter."""

    @abstractmethod
    def unplug_clue(self, record: Record) -> Clue | None:
        """Return what a record says of the guest's giving up this device."""

    @abstractmethod
    def _queried(self) -> bool:
        """Return whether QEMU's own query command lists the device."""

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.id} drcs {', '.join(f'{index:#x}' for index in self.drcs)}>"


def presence(found: int, expected: int) -> Presence:
    """Return the word for ``found`` parts of ``expected``."""
    return Presence.PRESENT if found == expected else Presence.PARTIAL if found else Presence.ABSENT
