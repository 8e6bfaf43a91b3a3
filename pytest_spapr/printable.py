"""Text of unknown origin for a terminal, a file or a page: nothing in it acts, hides or turns what stands around it."""

from __future__ import annotations


def printable(text: str, kept: str = "") -> str:
    r"""Return the text with each character that does not print by its number: ``\x1b``, ``\x0a``, ``\x202e``.

    :param kept: characters that stay all the same.
    """
    if text.isprintable():
        # Nearly all; a flood is read a hundred times as fast.
        return text
    return "".join(letter if letter.isprintable() or letter in kept else f"\\x{ord(letter):02x}" for letter in text)
