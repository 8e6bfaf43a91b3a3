"""Sizes as people write them."""

from __future__ import annotations

import re

from pytest_spapr.errors import ConfigError

_SIZE = re.compile(r"(?P<number>\d+(\.\d+)?)(?P<suffix>[KMGTkmgt]?)(i?[Bb])?")


def parse_size(text: str, where: str = "") -> int:
    """Return a size in bytes: ``500M``, ``8G``, or a number of bytes. The suffixes are powers of 1024.

    :param where: who wrote it, for the error. :raises ConfigError: it is none.
    """
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise ConfigError(f"{where}{text!r} is no size: expected a number with or without K, M, G or T behind it, e.g. 8G.")
    return int(float(match["number"]) * 1024 ** " KMGT".index(match["suffix"].upper() or " "))
