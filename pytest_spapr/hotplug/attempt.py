"""An attempt: one ``device_del`` and all that followed from it, as a value."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from pytest_spapr.hotplug.management import WAIT, Verdict, verdict
from pytest_spapr.hotplug.outcome import Kind, Outcome, Presence, Silence

_WAITS: Final = {True: "QEMU waits", False: "QEMU does not wait", None: "QEMU cannot say whether it waits"}


@dataclass(frozen=True, slots=True)
class Views:
    """Who says that the device is there, once the attempt was over.

    :ivar qemu: ``query-hotpluggable-cpus``, ``query-memory-devices`` or the QOM tree.
    :ivar guest: sysfs.
    """

    qemu: Presence
    guest: Presence

    def __str__(self) -> str:
        return f"QEMU says {self.qemu}, the guest says {self.guest}"


@dataclass(frozen=True, eq=False, kw_only=True)
class Attempt:
    """One ``device_del`` and what followed, up to the moment when the outcome was certain.

    Compare it with what a contract promises: ``assert device.unplug() == contract.removal(device)``.

    :ivar device: the device's id. :ivar kind: its class.
    :ivar outcome: what came of it. :ivar cause: for PENDING and REVERTED, why nobody said anything.
    :ivar waiting: whether QEMU still waits for the guest to give the device back (``unplug_requested``), as read from QEMU after it; None
        if QEMU is dead or cannot say.
    :ivar asked: whether QEMU asked the guest and waited for it. A device that the guest never configured is removed without, which
        proves nothing about the guest.
    :ivar reply: QEMU's words if it refused the command, else None.
    :ivar events: the QAPI events about this device, in order, whole.
    :ivar evidence: what the verdict rests on, one line each, as read from QEMU, the guest's log and the guest's state.
    :ivar views: QEMU's and the guest's view after it. :ivar elapsed: seconds from the command to the verdict.
    :ivar drcs: the indexes of the device's connectors.
    :ivar began: the timeline's cursor just before the command. :ivar ended: the cursor just after the verdict.
    """

    device: str
    kind: Kind
    outcome: Outcome
    cause: Silence | None
    asked: bool
    reply: str | None
    events: tuple[Mapping[str, Any], ...]
    evidence: tuple[str, ...]
    views: Views
    elapsed: float
    began: int
    ended: int
    waiting: bool | None = None
    drcs: tuple[int, ...] = ()

    @property
    def event_names(self) -> tuple[str, ...]:
        """The names of the events, in order."""
        return tuple(event["event"] for event in self.events)

    @property
    def management(self) -> Verdict:
        """What libvirt makes of it if nothing else happens while it waits, which is for 10 s (``hotplug.management``)."""
        if self.outcome is Outcome.CRASHED:
            return Verdict.UNKNOWN
        error_class = None
        if self.reply is not None:
            error_class = "DeviceNotFound" if self.reply == f"Device '{self.device}' not found" else "GenericError"
        return verdict(self.events, WAIT, alias=self.device, error_class=error_class)

    def __str__(self) -> str:
        words = [f"{self.kind} {self.device}: {self.outcome.upper()}"]
        if self.cause is not None:
            words.append(f"({self.cause})")
        words.append(f"after {self.elapsed:.3f} s")
        words.append("guest asked," if self.asked else "guest not asked,")
        if self.reply is not None:
            words.append(f"reply {self.reply!r}")
        words.append(f"events [{', '.join(self.event_names)}]")
        words.append(f"{self.views}, {_WAITS[self.waiting]}")
        return " ".join(words)

    def __repr__(self) -> str:
        return f"<Attempt {self}>"
