"""What is kept of a stream that floods."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable
from typing import Final

#: Lines of one stream that are kept whole: 30 MB of memory, and more than a person reads.
MOST: Final = 100_000
# Characters of them: the longest lines would take a hundred times as much.
_ROOM: Final = 32_000_000
_LAST: Final = 20


class Flood:
    """Hands lines on up to a number. Of those that come beyond it the last ones are handed on at the end, after how many they were.

    So a QEMU that never stops to complain, or a guest, fills neither the memory nor the disk of who watches it. Not safe for several
    threads at once.

    :param hand_on: what each line is given to. :param also: lines that match are handed on beyond it too, up to the same number.
    """

    def __init__(self, hand_on: Callable[[str], object], most: int = MOST, *, also: re.Pattern[str] | None = None) -> None:
        self._hand_on = hand_on
        self._left = self._left_also = most
        self._room = self._room_also = _ROOM
        self._also = also
        self._over = 0
        self._last: deque[str] = deque(maxlen=_LAST)

    def __call__(self, line: str) -> None:
        """Take a line."""
        if self._left > 0 and self._room > 0:
            self._left -= 1
            self._room -= len(line)
            self._hand_on(line)
            return
        if self._also and self._left_also > 0 and self._room_also > 0 and self._also.match(line):
            self._left_also -= 1
            self._room_also -= len(line)
            self._hand_on(line)
            return
        # From here on nothing is whole any more.
        self._left = 0
        if not self._over:
            self._hand_on("(more than can be kept: what follows is left out, but for its last lines)")
        self._over += 1
        self._last.append(line)

    def end(self) -> None:
        """Hand on what is to be told of those that came beyond. Nothing may come after it."""
        if self._over > len(self._last):
            self._hand_on(f"({self._over - len(self._last)} lines are left out here)")
        for line in self._last:
            self._hand_on(line)
        self._last.clear()
