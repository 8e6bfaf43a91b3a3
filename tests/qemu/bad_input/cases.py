"""What QEMU is to refuse, and in which words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pytest

from pytest_spapr import PseriesMachine, QmpRefused

from ...hotplug.inventory import nothing_changes

#: Of words that every version says.
ALWAYS: tuple[int, ...] = ()


@dataclass(frozen=True)
class Case:
    """A bad ``device_add`` or ``object-add``. :ivar words: QEMU's, as a regular expression."""

    ids: str
    words: str
    arguments: dict[str, Any]

    def __str__(self) -> str:
        return self.words


@dataclass(frozen=True)
class Refused:
    """A command that QEMU refuses, in words that depend on its generation.

    :ivar words: all of QEMU's, by the first version that says so. :ivar arguments: as QMP has them.
    """

    name: str
    words: Mapping[tuple[int, ...], str]
    arguments: dict[str, Any]
    error_class: str = "GenericError"

    def __str__(self) -> str:
        return self.name

    def expect(self, machine: PseriesMachine, command: str, **arguments: Any) -> None:
        """Send the command; it is to be refused in these words, and to change nothing."""
        words = self.words[max(since for since in self.words if since <= machine.build.version)]
        with nothing_changes(machine), pytest.raises(QmpRefused) as refused:
            machine.qmp.execute(command, {**self.arguments, **arguments})
        assert (refused.value.error_class, refused.value.description) == (self.error_class, words)
