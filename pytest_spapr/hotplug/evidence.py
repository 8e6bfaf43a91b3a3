"""Clues: what one record of the timeline says about the guest's work on a device."""

from __future__ import annotations

from enum import Enum, auto


class Clue(Enum):
    """A step of the guest's work on a device, as it shows in the guest's own log."""

    BEGAN = auto()  #: the part of the guest that has to act has begun
    FAILED = auto()  #: it gave up; whether it tells anybody is not known yet
    DONE = auto()  #: it says that it succeeded
