"""The dashboard of a real daemon with a real guest: a point and a drill by a click."""

from __future__ import annotations

import contextlib
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from drvm.core.clock import SystemClock
from drvm.lab import guest as lab
from drvm.lab.guest import wait_for_text
from tests.appliance import Appliance, make_appliance
from tests.browser import Pages
from tests.guests import MakeGuest, unique_name

pytestmark = [pytest.mark.guest, pytest.mark.long]

LIMIT_S = 150.0
TOKEN = "correct-horse-battery-staple-9"


@dataclass(frozen=True)
class Site:
    appliance: Appliance
    process: subprocess.Popen[bytes]
    url: str
    log: Path


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


@contextlib.contextmanager
def daemon(appliance: Appliance) -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
    log = appliance.directory / "daemon.log"
    with log.open("wb") as stream:
        process = subprocess.Popen(
            [sys.executable, "-m", "drvm", "--config", str(appliance.config), "daemon"],
            env=dict(appliance.env),
            stdin=subprocess.DEVNULL,
            stderr=stream,
        )
    try:
        yield process, log
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(35)
        finally:
            process.kill()


def config(directory: Path, vm: str, drills: Path, port: int) -> Appliance:
    token = directory / "token"
    token.write_text(f"{TOKEN}\n")
    token.chmod(0o600)
    return make_appliance(
        directory,
        f"file://{directory}/repository",
        None,
        f"policies:\n"
        f'  - {{name: nightly, vms: ["{vm}"], schedule: "0 0 1 1 *", rpo: 24h,\n'
        f"     drill: {{directory: {drills}, rto: 15m, checks: [{{agent: {{}}}}]}}}}\n"
        f"daemon:\n  dashboard: {{port: {port}, token_file: {token}}}\n",
    )


def test_a_point_and_a_drill_by_a_click(
    make_guest: MakeGuest, libvirt_uri: str, tmp_path: Path, browser_pages: Pages
) -> None:
    guest = make_guest("dashboard")
    port = free_port()
    with lab.workspace(unique_name("drills")) as drills:
        appliance = config(tmp_path, guest.name, drills, port)
        appliance.drvm("init")
        appliance.backup(guest.name)  # so that nothing is owed when the daemon starts
        with daemon(appliance) as (process, log):
            assert wait_for_text(log, f"dashboard at http://127.0.0.1:{port}", LIMIT_S,
                                 SystemClock()), log.read_text()  # fmt: skip
            page = browser_pages.open(f"http://127.0.0.1:{port}/")
            page.set_default_timeout(LIMIT_S * 1000)
            page.fill("#token", TOKEN)
            page.get_by_role("button", name="Log in").click()
            page.get_by_role("link", name=guest.name).first.click()
            page.get_by_text("live", exact=True).wait_for()
            rows = page.locator(".fleet.points tbody tr")
            assert rows.count() == 1
            page.get_by_role("button", name="Back up now").click()
            page.get_by_text("The backup was asked for").wait_for()
            rows.nth(1).wait_for()
            page.get_by_role("button", name="Drill now").click()
            page.locator(".running").get_by_text("drill nightly").wait_for()
            page.get_by_text("was asked for").wait_for(state="detached")
            page.locator(".card").get_by_text("passed").wait_for()
            browser_pages.picture(page, "dashboard-real-vm")
            command = page.locator(".fleet.points code").first.inner_text()
            page.locator(".card").first.click()
            page.get_by_role("heading", name="Recovery drill").wait_for()
            browser_pages.picture(page, "dashboard-real-drill")
            page.get_by_role("link", name="Overview").click()
            page.get_by_text("live", exact=True).wait_for()
            browser_pages.picture(page, "dashboard-real-overview")
            browser_pages.expect_perhaps("net::ERR_")  # the daemon ends below it
            process.send_signal(signal.SIGTERM)
            assert process.wait(30) == 0, log.read_text()
        assert "Traceback" not in log.read_text() and TOKEN not in log.read_text()
        points = appliance.json("points", guest.name)["points"]
        mine = f"drvm --config {appliance.config} restore "
        assert command.removeprefix(mine).split()[0] in {point["id"] for point in points}
        assert len(points) == 2
        assert "overlay" not in guest.virsh("domblklist")
