"""The pictures of pages in docs/: ``python -m tests.pictures [DIRECTORY]``, with Chromium.

Of a fleet that never was, the same each time; the guest's screen in it is a page of text, too.
"""

from __future__ import annotations

import datetime as dt
import os
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from drvm.core.clock import SystemClock
from drvm.report.html import html_report
from drvm.web.app import make_app
from drvm.web.server import Dashboard
from tests.browser import CHROMIUM
from tests.fakes.dashboard import NOW, TOKEN, WEB1, FakeDaemon
from tests.made_up_fleet import MadeUp

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

MAX_BYTES = 300 * 1024

_SCREEN = """
<body style="margin: 0; padding: 12px; background: #000; color: #b8b8b8">
<pre style="font: 13px/16px 'DejaVu Sans Mono', monospace; margin: 0">
[    3.204417] EXT4-fs (vda2): mounted filesystem with ordered data mode
[    3.861220] systemd[1]: Reached target Local File Systems.
[    4.551908] systemd[1]: Started PostgreSQL Cluster 15-main.
[    4.780313] systemd[1]: Started QEMU Guest Agent.
[    5.113027] systemd[1]: Started build-runner.service.
[  101.020114] build-runner[713]: http: upstream 10.20.4.11:8443: no route to host
[  106.020920] build-runner[713]: http: upstream 10.20.4.11:8443: no route to host

Debian GNU/Linux 12 build1 tty1

build1 login: _
</pre></body>
"""


def pictures(directory: Path) -> list[Path]:
    """Raises ``AssertionError`` for one that is too large for docs/."""
    from playwright.sync_api import sync_playwright

    arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
    with sync_playwright() as playwright, tempfile.TemporaryDirectory() as place:
        browser = playwright.chromium.launch(executable_path=str(CHROMIUM), args=arguments)
        screen = browser.new_page(viewport={"width": 720, "height": 200})
        screen.set_content(_SCREEN)
        page = Path(place) / "report.html"
        page.write_text(html_report(MadeUp(24, picture=screen.screenshot()).report()))
        made = [
            _picture(browser, page, directory / "report.png", (1180, 1560)),
            _picture(browser, page, directory / "report-dark.png", (1180, 1400), "drills"),
            _picture(browser, page, directory / "report-storage.png", (1180, 1000), "storage"),
            _picture(browser, page, directory / "report-phone.png", (360, 1500)),
            *_of_dashboard(browser, directory, screen.screenshot()),
        ]
        browser.close()
    for path in made:
        assert path.stat().st_size <= MAX_BYTES, f"{path} has {path.stat().st_size} bytes"
    return made


def _of_dashboard(browser: Browser, directory: Path, console: bytes) -> list[Path]:
    daemon = FakeDaemon()
    daemon.drills = tuple(
        msgspec.structs.replace(drill, screenshot_png=console) for drill in daemon.drills
    )
    dashboard = Dashboard(lambda: make_app(daemon, TOKEN, clock=_Then()), "127.0.0.1", 0)
    dashboard.start()
    try:
        assert dashboard.started.wait(30)
        address = f"http://127.0.0.1:{dashboard.port}"
        return [
            _of_page(browser, address, "/", directory / "dashboard-overview.png", (1180, 1560)),
            _of_page(browser, address, f"/vm/{WEB1}", directory / "dashboard-vm-dark.png",
                     (1180, 1000)),
            _of_page(browser, address, "/", directory / "dashboard-phone-dark.png", (360, 1500)),
        ]  # fmt: skip
    finally:
        dashboard.stop()


def _of_page(browser: Browser, address: str, where: str, path: Path, size: tuple[int, int]) -> Path:
    page = _opened(browser, path, size)
    page.goto(f"{address}/login")
    page.fill("#token", TOKEN)
    page.keyboard.press("Enter")
    page.wait_for_url(f"{address}/")
    page.goto(address + where)
    page.get_by_text("live", exact=True).wait_for(state="attached")
    page.screenshot(path=path, animations="disabled")
    return path


def _picture(
    browser: Browser, source: Path, path: Path, size: tuple[int, int], at: str = ""
) -> Path:
    page = _opened(browser, path, size)
    page.goto(f"{source.as_uri()}#{at}")
    page.screenshot(path=path, animations="disabled")
    return path


def _opened(browser: Browser, path: Path, size: tuple[int, int]) -> Page:
    return browser.new_page(
        viewport={"width": size[0], "height": size[1]},
        color_scheme="dark" if "dark" in path.name else "light",
        timezone_id="UTC",
    )


class _Then(SystemClock):
    """So that pages say always the same."""

    def now(self) -> dt.datetime:
        return NOW


if __name__ == "__main__":
    for made_picture in pictures(Path(sys.argv[1] if len(sys.argv) > 1 else "docs")):
        print(made_picture)
