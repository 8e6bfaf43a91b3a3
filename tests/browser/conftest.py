"""Pages in a real browser: the Chromium of this machine, driven by playwright. Neither is needed by anything else."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from ci.pages.browser import NoBrowser, chromium

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """A headless Chromium; without one the test is skipped and says what to do."""
    try:
        with chromium() as started:
            yield started
    except NoBrowser as error:
        pytest.skip(f"no browser: {error}")


@pytest.fixture
def show(browser: Browser) -> Iterator[Callable[..., Page]]:
    """Show a file, and fail at the end if its script raised, or if anything was to be loaded."""
    troubles: list[str] = []
    contexts = []

    def open_page(file: Path, *, width: int = 1280, height: int = 900, dark: bool = False, fragment: str = "") -> Page:
        context = browser.new_context(
            viewport={"width": width, "height": height}, color_scheme="dark" if dark else "light", offline=True
        )
        contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: troubles.append(f"script: {error}"))
        page.on("console", lambda message: troubles.append(f"console: {message.text}") if message.type == "error" else None)
        page.on("request", lambda one: troubles.append(f"request: {one.url}") if one.resource_type != "document" else None)
        page.goto(file.as_uri() + fragment)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert troubles == []
