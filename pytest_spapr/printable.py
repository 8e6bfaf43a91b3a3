"""Text of unknown origin for a terminal, a file or a page: nothing in it acts, hides or turns what stands around it."""

from __future__ import annotations


def printable(text: str) -> str:
    r"""Return the text with each character that does not print by its number: ``\x1b``, ``\x0a``, ``\x202e``."""
    return "".join(letter if letter.isprintable() else f"\\x{ord(letter):02x}" for letter in text)
