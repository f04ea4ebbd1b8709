"""The dashboard in a real browser: what a person sees and clicks, with and without script."""

from __future__ import annotations

import dataclasses
import http.server
import re
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from drvm.core.clock import SystemClock
from drvm.web import live, server
from drvm.web.app import make_app
from drvm.web.server import Dashboard
from tests.browser import PHONE, Pages, sideways
from tests.fakes.dashboard import DB1, NOW, TOKEN, WEB1, FakeDaemon, some_id

if TYPE_CHECKING:
    from playwright.sync_api import Page

WAIT_S = 20.0


class StandingClock(SystemClock):
    """So that pages say always the same."""

    def now(self):  # type: ignore[no-untyped-def]
        return NOW


@dataclasses.dataclass
class Site:
    daemon: FakeDaemon
    url: str


@pytest.fixture
def site() -> Iterator[Site]:
    daemon = FakeDaemon()
    dashboard = Dashboard(lambda: make_app(daemon, TOKEN, clock=StandingClock()), "127.0.0.1", 0)
    dashboard.start()
    try:
        assert dashboard.started.wait(WAIT_S)
        yield Site(daemon, f"http://127.0.0.1:{dashboard.port}")
    finally:
        dashboard.stop()


def entered(pages: Pages, site: Site, path: str = "/", **look: object) -> Page:
    page = pages.open(f"{site.url}/login", **look)  # type: ignore[arg-type]
    page.fill("#token", TOKEN)
    page.get_by_role("button", name="Log in").click()
    page.wait_for_url(f"{site.url}/")
    if path != "/":
        page.goto(site.url + path)
    return page


def test_a_wrong_token_stays_at_the_login_and_the_right_one_opens_the_overview(
    site: Site, browser_pages: Pages
) -> None:
    browser_pages.expect("status of 403")
    page = browser_pages.open(site.url)
    assert page.url == f"{site.url}/login"
    page.fill("#token", "a guess")
    page.keyboard.press("Enter")
    page.get_by_role("alert").wait_for()
    page.fill("#token", TOKEN)
    page.keyboard.press("Enter")
    page.get_by_role("heading", name="What needs attention first").wait_for()
    page.get_by_role("button", name="Log out").click()
    page.wait_for_url(f"{site.url}/login")
    page.goto(site.url)
    assert page.url == f"{site.url}/login"


def test_progress_moves_while_one_looks_and_what_ends_goes(
    site: Site, browser_pages: Pages
) -> None:
    page = entered(browser_pages, site)
    page.get_by_text("live", exact=True).wait_for()
    bar = page.get_by_role("progressbar")
    assert bar.get_attribute("value") == str(3 * 2**30)
    (run,) = site.daemon.now_running
    site.daemon.now_running = (dataclasses.replace(run, done_bytes=7 * 2**30, stage="closing"),)
    page.get_by_text("closing").wait_for()
    assert bar.get_attribute("value") == str(7 * 2**30)
    site.daemon.now_running = ()
    site.daemon.vms = site.daemon.vms[:1]
    page.get_by_text("Nothing runs now.").wait_for()
    page.locator(".fleet.overview tbody tr").nth(1).wait_for(state="detached")


def test_drill_now_begins_one_and_shows_it_running(site: Site, browser_pages: Pages) -> None:
    page = entered(browser_pages, site, f"/vm/{DB1}")
    page.get_by_role("button", name="Drill now").click()
    page.get_by_text("The drill was asked for").wait_for()
    page.get_by_text("drill nightly").first.wait_for()
    assert site.daemon.began == [("drill", DB1)]
    page.get_by_role("button", name="Drill now").dblclick()
    page.get_by_text("a drill of this VM runs already").wait_for()
    assert site.daemon.began == [("drill", DB1)]
    browser_pages.expect("status of 409")


def test_a_double_click_begins_one(site: Site, browser_pages: Pages) -> None:
    browser_pages.expect_perhaps("status of 409")
    page = entered(browser_pages, site, f"/vm/{DB1}")
    page.get_by_role("button", name="Back up now").dblclick()
    page.get_by_text(re.compile("was asked for|runs already")).wait_for()
    assert site.daemon.began == [("backup", DB1)]


def test_the_restore_command_is_copied(site: Site, browser_pages: Pages) -> None:
    page = entered(browser_pages, site, f"/vm/{WEB1}")
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.get_by_role("button", name=re.compile("^Copy: Restore it")).first.click()
    page.get_by_text("Copied").wait_for()
    copied = page.evaluate("navigator.clipboard.readText()")
    assert copied == f"drvm restore {some_id(WEB1)} --replace"


def test_what_somebody_uses_is_not_changed_below_them(site: Site, browser_pages: Pages) -> None:
    page = entered(browser_pages, site, f"/vm/{WEB1}")
    page.get_by_text("live", exact=True).wait_for()
    page.get_by_text("Other ways").first.click()
    site.daemon.now_running = ()
    page.get_by_text("Nothing runs now.").wait_for()
    page.wait_for_timeout(500)
    assert page.locator("details[open]").count() == 1
    assert page.locator("details[open] code").first.inner_text().startswith("drvm clone ")


def test_all_of_it_works_without_script(site: Site, browser_pages: Pages) -> None:
    page = entered(browser_pages, site, script=False)
    assert page.locator("progress").count() == 1
    refresh = page.locator("meta[http-equiv=refresh]")
    assert refresh.get_attribute("content") == "30"
    page.get_by_role("link", name="db1").first.click()
    page.get_by_role("button", name="Drill now").click()
    page.get_by_text("The drill was asked for").wait_for()
    assert site.daemon.began == [("drill", DB1)]
    assert page.locator("button.copy:visible").count() == 0
    page.locator(".card").first.click()
    page.get_by_role("heading", name="Recovery drill").wait_for()
    page.get_by_role("link", name="Runs").click()
    page.get_by_role("link", name="failed").click()
    assert page.get_by_text("has no room for an overlay").count() == 1
    page.get_by_role("button", name="Log out").click()
    page.wait_for_url(f"{site.url}/login")


def test_more_pages_than_streams_are_renewed_all_the_same(
    site: Site, browser_pages: Pages, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live, "MAX_STREAMS_OF_ONE", 0)
    browser_pages.expect("status of 429")
    page = entered(browser_pages, site)
    page.get_by_text("renewed every half minute").wait_for()


def test_a_daemon_that_comes_back_is_noticed(browser_pages: Pages) -> None:
    daemon = FakeDaemon()
    first = Dashboard(lambda: make_app(daemon, TOKEN), "127.0.0.1", 0)
    first.start()
    assert first.started.wait(WAIT_S)
    site = Site(daemon, f"http://127.0.0.1:{first.port}")
    page = entered(browser_pages, site)
    page.get_by_text("live", exact=True).wait_for()
    first.stop()
    page.get_by_text("connecting again").wait_for()
    second = Dashboard(lambda: make_app(daemon, TOKEN), "127.0.0.1", first.port)
    second.start()
    try:
        page.wait_for_url(f"{site.url}/login")  # its sessions ended with it
    finally:
        second.stop()
    browser_pages.expect_perhaps("net::ERR_")
    browser_pages.expect_perhaps("status of 401")


@pytest.mark.parametrize(
    ("name", "look"),
    [("light", {}), ("dark", {"dark": True}), ("phone", {"size": PHONE, "dark": True})],
)
def test_no_page_is_wider_than_its_screen_and_all_are_pictured(
    site: Site, browser_pages: Pages, name: str, look: dict[str, object]
) -> None:
    page = entered(browser_pages, site, **look)
    page.get_by_text("live", exact=True).wait_for(state="attached")
    for path, what in [
        ("/", "overview"),
        (f"/vm/{WEB1}", "vm"),
        ("/runs", "runs"),
        ("/drill/drill-db1-30", "drill"),
    ]:
        page.goto(site.url + path)
        page.wait_for_load_state("load")
        browser_pages.picture(page, f"dashboard-{what}-{name}")
        assert sideways(page) == 0, what


@pytest.mark.parametrize(
    ("zone", "words"),
    [("Asia/Kolkata", "5 h 30 min ahead of UTC"), ("America/Lima", "5 h behind UTC")],
)
def test_a_page_says_how_far_its_utc_is_from_whoever_looks(
    site: Site, browser_pages: Pages, zone: str, words: str
) -> None:
    page = entered(browser_pages, site, zone=zone)
    assert page.get_by_text(words).count() == 2
    first = page.locator("table time").first
    first.hover()
    assert "in your time zone" in (first.get_attribute("title") or "")


def test_on_a_phone_names_and_moments_have_the_whole_width(
    site: Site, browser_pages: Pages
) -> None:
    page = entered(browser_pages, site, f"/vm/{WEB1}", size=PHONE)
    narrow = """[...document.querySelectorAll("tbody th")].filter(
        (e) => e.getBoundingClientRect().width < 0.8 * e.parentElement.getBoundingClientRect().width
    ).length"""
    for path in (f"/vm/{WEB1}", "/", "/runs"):
        page.goto(site.url + path)
        assert page.evaluate(narrow) == 0, path
    page.goto(site.url)
    out = page.locator("header.bar button").bounding_box()
    assert out is not None and out["x"] + out["width"] <= PHONE[0] - 8


@pytest.fixture
def evil_page() -> Iterator[str]:
    """Somebody else's server on another port of this machine: to browsers the same site, so that
    even a strict cookie comes along."""

    class Evil(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(b"<!doctype html><title>evil</title><link rel=icon href=data:,>")

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Evil)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_a_page_of_another_origin_gets_nothing_done_and_nothing_told(
    site: Site, browser_pages: Pages, evil_page: str
) -> None:
    """It has the browser send whatever it can, with the cookie of who is logged in."""
    page = entered(browser_pages, site)
    other = page.context.new_page()
    other.goto(evil_page)
    answers: list[tuple[str, int]] = []
    other.on("response", lambda got: answers.append((got.request.method, got.status)))
    told = other.evaluate(
        """async ([target, vm]) => {
            const post = {method: "POST", mode: "no-cors", credentials: "include"};
            const form = () => new URLSearchParams({csrf: "x"});
            const asked = [
                fetch(target + "/report.json", {credentials: "include"}),
                fetch(target + "/", {mode: "no-cors", credentials: "include"}),
                ...["backup", "drill"].map((what) =>
                    fetch(`${target}/vm/${vm}/${what}`, {...post, body: form()})),
                fetch(target + "/logout", {...post, body: form()}),
            ];
            const settled = await Promise.allSettled(asked);
            return settled.map((one) => one.status === "fulfilled" && one.value.type !== "opaque");
        }""",
        [site.url, DB1],
    )
    assert not any(told)
    sent = [status for method, status in answers if method == "POST"]
    assert all(status == 403 for status in sent)
    other.evaluate(
        """(target) => {
            const form = document.createElement("form");
            form.method = "post";
            form.action = target;
            document.body.append(form);
            form.submit();
        }""",
        f"{site.url}/vm/{DB1}/drill",
    )
    other.get_by_text("this form is of another site").wait_for()
    assert site.daemon.began == []
    page.reload()
    page.get_by_role("heading", name="Overview").wait_for()  # still logged in


def test_no_page_of_another_origin_may_frame_ours(
    site: Site, browser_pages: Pages, evil_page: str
) -> None:
    page = entered(browser_pages, site)
    other = page.context.new_page()
    other.goto(evil_page)
    other.set_content(f'<iframe src="{site.url}/vm/{DB1}"></iframe>')
    frame = other.locator("iframe").element_handle().content_frame()
    assert frame is not None
    frame.wait_for_load_state()
    assert frame.get_by_role("button", name="Drill now").count() == 0


def test_the_server_limits_are_what_the_pages_need() -> None:
    """A browser opens six connections to a server."""
    assert live.MAX_STREAMS_OF_ONE < 6 <= server.MAX_CONNECTIONS
