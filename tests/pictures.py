"""The pictures of the report in docs/: ``python -m tests.pictures [DIRECTORY]``, with Chromium.

Of a fleet that never was, the same each time; the guest's screen in it is a page of text, too.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from drvm.report.html import html_report
from tests.browser import CHROMIUM
from tests.made_up_fleet import MadeUp

if TYPE_CHECKING:
    from playwright.sync_api import Browser

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
        ]
        browser.close()
    for path in made:
        assert path.stat().st_size <= MAX_BYTES, f"{path} has {path.stat().st_size} bytes"
    return made


def _picture(
    browser: Browser, source: Path, path: Path, size: tuple[int, int], at: str = ""
) -> Path:
    page = browser.new_page(
        viewport={"width": size[0], "height": size[1]},
        color_scheme="dark" if "dark" in path.name else "light",
    )
    page.goto(f"{source.as_uri()}#{at}")
    page.screenshot(path=path, animations="disabled")
    return path


if __name__ == "__main__":
    for made_picture in pictures(Path(sys.argv[1] if len(sys.argv) > 1 else "docs")):
        print(made_picture)
