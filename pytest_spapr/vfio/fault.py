"""What can be wrong with a device: which messages its server does not answer as it should."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from pytest_spapr.vfio.protocol import Command

#: Registers and configuration space.
ACCESSES: Final = frozenset({Command.REGION_READ, Command.REGION_WRITE})
#: All that a device's own driver, or its unplug, makes QEMU ask for.
ALL: Final = ACCESSES | {Command.SET_IRQS, Command.RESET}


class Wrong(StrEnum):
    """A kind of fault."""

    HELD = "held"  #: done, and answered when the test says so
    UNANSWERED = "unanswered"  #: neither done nor answered, ever
    ONES = "all ones"  #: reads return ones, writes are lost: as a bus does without a device
    REFUSED = "refused"  #: answered with an error
    SLOW = "slow"  #: answered later


@dataclass(slots=True)
class Fault:
    """One fault, from when it is set until it is taken back.

    :ivar commands: what it befalls. :ivar errno: for REFUSED. :ivar seconds: for SLOW. :ivar hits: how many messages it befell.
    """

    wrong: Wrong
    commands: frozenset[Command]
    errno: int = 0
    seconds: float = 0.0
    hits: int = 0
