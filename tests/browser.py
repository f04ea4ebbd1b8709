"""Chromium for tests of pages: what a page shows and does, and that it does nothing else.

``browser_pages`` opens pages; at the end of a test each of them must have been silent: no error or
warning on its console (a breach of its Content-Security-Policy is one), no exception in a script,
no request to another origin. What a test provokes on purpose it expects by ``expect``.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser, BrowserContext, Page, Request

CHROMIUM = Path("/usr/bin/chromium")
SCREENSHOTS = "DRVM_TEST_SCREENSHOTS"
"""The variable that names the directory where pictures are kept; without it none are taken."""

TIMEOUT_MS = 20_000
DESKTOP = (1280, 900)
PHONE = (360, 740)

_INSIDE = ("data", "blob", "about")


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    """Debian's Chromium, one for a file of tests: as long as it is there, an event loop runs in
    this thread, and whatever else needs one can't have it. Names of other machines lead nowhere."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="not installed: playwright")
    if not CHROMIUM.exists():
        pytest.skip(f"not installed: {CHROMIUM}")
    arguments = ["--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1, EXCLUDE localhost"]
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=str(CHROMIUM),
            args=arguments,
            chromium_sandbox=os.geteuid() != 0,  # Chromium refuses to sandbox what root starts
        )
        try:
            yield browser
        finally:
            browser.close()


class Pages:
    """The pages of one test, and what they did that they should not have."""

    def __init__(self, browser: Browser, directory: Path | None) -> None:
        self._browser = browser
        self._directory = directory
        self._contexts: list[BrowserContext] = []
        self._faults: list[str] = []
        self._expected: list[str] = []
        self._allowed: list[str] = []

    def open(
        self,
        url: str,
        *,
        size: tuple[int, int] = DESKTOP,
        dark: bool = False,
        script: bool = True,
        zone: str = "UTC",
    ) -> Page:
        """A page at ``url`` with cookies of its own, in the time ``zone``. Only ``url``'s own
        origin may be asked for anything; of a ``file:`` only that one file."""
        context = self._browser.new_context(
            viewport={"width": size[0], "height": size[1]},
            color_scheme="dark" if dark else "light",
            java_script_enabled=script,
            timezone_id=zone,
        )
        self._contexts.append(context)
        context.set_default_timeout(TIMEOUT_MS)
        page = context.new_page()
        page.on("console", lambda said: self._console(said.type, said.text))
        page.on("pageerror", lambda error: self._faults.append(f"exception: {error}"))
        page.on("request", self._watch_of(url))
        page.goto(url)
        return page

    def expect(self, fault: str) -> None:
        """A fault that this regular expression finds belongs to the test, and must come."""
        self._expected.append(fault)

    def expect_perhaps(self, fault: str) -> None:
        """Such a fault belongs to the test, and may come."""
        self._allowed.append(fault)

    def picture(self, page: Page, name: str, *, whole: bool = True) -> Path | None:
        """A PNG of the page, ``whole`` or what is in view; where pictures are kept."""
        if self._directory is None:
            return None
        path = self._directory / f"{name}.png"
        page.screenshot(path=path, full_page=whole, animations="disabled")
        return path

    def close(self) -> None:
        for context in self._contexts:
            context.close()

    def faults(self) -> list[str]:
        """What was not expected, and what was expected in vain."""
        known = [*self._expected, *self._allowed]
        found = [text for text in self._faults if not any(map(_finder(text), known))]
        missing = [
            f"did not come: {fault}"
            for fault in self._expected
            if not any(re.search(fault, text) for text in self._faults)
        ]
        return found + missing

    def _console(self, kind: str, text: str) -> None:
        if kind in ("error", "warning"):
            self._faults.append(f"console {kind}: {text}")

    def _watch_of(self, first: str) -> Callable[[Request], None]:
        def watch(request: Request) -> None:
            if urlsplit(request.url).scheme not in _INSIDE and _place(request.url) != _place(first):
                self._faults.append(f"request: {request.url}")

        return watch


def sideways(page: Page) -> int:
    """How many pixels the page is wider than what shows it: on a phone it must be none."""
    width: int = page.evaluate(
        "document.documentElement.scrollWidth - document.documentElement.clientWidth"
    )
    return width


@pytest.fixture
def browser_pages(chromium: Browser) -> Iterator[Pages]:
    directory = Path(kept) if (kept := os.environ.get(SCREENSHOTS)) else None
    if directory is not None:
        directory.mkdir(parents=True, exist_ok=True)
    pages = Pages(chromium, directory)
    try:
        yield pages
    finally:
        pages.close()
    if faults := pages.faults():
        pytest.fail("what no page may do: " + "; ".join(faults))


def _finder(text: str) -> Callable[[str], bool]:
    return lambda fault: re.search(fault, text) is not None


def _place(url: str) -> tuple[str, str]:
    parts = urlsplit(url)
    return parts.scheme, parts.netloc or parts.path
