"""What the guest's parts need of it: a shell, and the reading of sysfs."""

from __future__ import annotations

from typing import Protocol

from pytest_spapr.guest.completed import Completed


class Shell(Protocol):
    """A guest's shell."""

    @property
    def usable(self) -> bool:
        """Whether a command has a chance to be answered: QEMU lives and the machine runs."""

    def run(self, command: str) -> Completed:
        """Run a command, whatever its status."""

    def read(self, path: str) -> str:
        """Return a file's text without surrounding white space."""


def first_lines(shell: Shell, pattern: str) -> dict[str, str]:
    """Return the first line of each file that a glob names, by its path, which has no colon; for sysfs.

    Builtins of the shell only: in a new clone, the first exec costs 0.05 s under TCG.

    :raises CommandFailed: there is none, or one cannot be read.
    """
    script = f'for file in {pattern}; do read -r line < "$file" || exit; echo "$file:$line"; done'
    found = (line.partition(":") for line in shell.run(script).check().stdout.splitlines())
    return {path: line for path, _, line in found}


def parse_ranges(text: str) -> frozenset[int]:
    """Return the numbers of a sysfs list such as ``0-3,5``; an empty text is an empty set."""
    numbers: set[int] = set()
    for part in filter(None, text.strip().split(",")):
        first, _, last = part.partition("-")
        numbers.update(range(int(first), int(last or first) + 1))
    return frozenset(numbers)
