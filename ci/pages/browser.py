"""The Chromium of this machine, driven by playwright, which brings none of its own here."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from pytest_spapr.doctor.tools import BROWSERS

if TYPE_CHECKING:
    from playwright.sync_api import Browser

#: Names a Chromium that is not on PATH.
VARIABLE: Final = "SPAPR_TEST_CHROMIUM"


class NoBrowser(Exception):
    """There is none, or nothing to drive it with; the text says what to do."""


def found() -> str | None:
    """Return the Chromium that is named or on PATH, or None."""
    return os.environ.get(VARIABLE) or next(filter(None, map(shutil.which, BROWSERS)), None)


@contextmanager
def chromium() -> Iterator[Browser]:
    """Start a headless Chromium for the ``with`` block.

    :raises NoBrowser: this machine has none, or playwright is not installed.
    """
    try:
        from playwright.sync_api import sync_playwright
    except ImportError as error:
        raise NoBrowser("playwright is not installed: pip install playwright, which PyPI has not for ppc64le") from error
    program = found()
    if program is None:
        raise NoBrowser(f"none of {', '.join(BROWSERS)} is on PATH: install one, or {VARIABLE}=$(python -m ci.pages.fetch)")
    with sync_playwright() as playwright:
        # Its sandbox is not for root, and what it shows is ours.
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()
