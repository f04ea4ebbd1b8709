"""The browser of the tests: what it must notice, and that it keeps pictures."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.browser import PHONE, Pages, sideways

_HEAD = "<!doctype html><html lang=en><meta charset=utf-8><title>t</title>"


def served(tmp_path: Path, body: str) -> str:
    path = tmp_path / "page.html"
    path.write_text(_HEAD + body)
    return path.as_uri()


def test_a_silent_page_has_no_faults(browser_pages: Pages, tmp_path: Path) -> None:
    page = browser_pages.open(served(tmp_path, "<h1>all is well</h1>"), size=PHONE)
    assert page.inner_text("h1") == "all is well"
    assert sideways(page) == 0
    assert browser_pages.faults() == []


def test_pictures_are_kept_where_they_are_wanted(browser_pages: Pages, tmp_path: Path) -> None:
    page = browser_pages.open(served(tmp_path, "<h1>all is well</h1>"), size=PHONE)
    assert Pages(browser_pages._browser, None).picture(page, "unwanted") is None
    picture = Pages(browser_pages._browser, tmp_path).picture(page, "silent")
    assert picture is not None and picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("body", "fault"),
    [
        ("<script>console.error('help')</script>", "console error: help"),
        ("<script>throw new Error('oh no')</script>", "exception: oh no"),
        ("<img src='https://other.example/x.png' alt=''>", "request: https://other.example/x.png"),
        (
            '<meta http-equiv="Content-Security-Policy" content="style-src \'none\'">'
            "<style>h1 { color: red }</style>",
            "Content Security Policy",
        ),
    ],
)
def test_what_a_page_must_not_do_is_noticed(
    browser_pages: Pages, tmp_path: Path, body: str, fault: str
) -> None:
    browser_pages.expect(fault)
    page = browser_pages.open(served(tmp_path, body))
    page.wait_for_load_state("networkidle")
    if "other.example" in body:
        browser_pages.expect("ERR_NAME_NOT_RESOLVED")
    assert browser_pages.faults() == []


def test_a_fault_that_was_expected_and_did_not_come_is_one(
    browser_pages: Pages, tmp_path: Path
) -> None:
    quiet = Pages(browser_pages._browser, tmp_path)
    quiet.expect("never")
    assert quiet.faults() == ["did not come: never"]


def test_a_page_without_script_runs_none(browser_pages: Pages, tmp_path: Path) -> None:
    page = browser_pages.open(
        served(tmp_path, "<p>plain</p><script>document.body.textContent = 'script'</script>"),
        script=False,
    )
    assert page.locator("p").inner_text() == "plain"
