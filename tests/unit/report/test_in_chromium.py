"""The page as a browser shows it. ``browser_pages`` sees to it that it is silent: no error on the
console, no request to outside. Pictures are kept where ``DRVM_TEST_SCREENSHOTS`` says."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import msgspec
import pytest

from drvm.core.units import MIB
from drvm.report.html import html_report
from drvm.report.input import CheckRow, JobRow, ReportInput, RunRow
from drvm.report.model import CheckResult
from tests.browser import DESKTOP, PHONE, Pages, sideways
from tests.made_up_fleet import NOW, MadeUp
from tests.unit.report.results import make_drill, make_report, make_row

MAX_PAGE_BYTES = 3 * MIB
"""Of 200 VMs with a small picture each: it can be mailed."""


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> str:
    return written(tmp_path_factory.mktemp("fleet"), MadeUp(24).report())


@pytest.fixture(scope="module")
def large_fleet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("large")
    written(directory, MadeUp(200).report())
    return directory / "report.html"


def written(directory: Path, report: ReportInput) -> str:
    path = directory / "report.html"
    path.write_text(html_report(report), encoding="utf-8")
    return path.as_uri()


@pytest.mark.parametrize(
    ("name", "size", "dark"),
    [("desktop", DESKTOP, False), ("desktop-dark", DESKTOP, True), ("phone", PHONE, False)],
)
def test_the_page_fits_and_is_silent(
    browser_pages: Pages, fleet: str, name: str, size: tuple[int, int], dark: bool
) -> None:
    page = browser_pages.open(fleet, size=size, dark=dark)
    assert sideways(page) == 0
    dark_page = page.evaluate(
        "getComputedStyle(document.body).backgroundColor.match(/\\d+/g).every((c) => c < 60)"
    )
    assert dark_page == dark
    page.wait_for_function("[...document.images].every((image) => image.naturalWidth > 0)")
    browser_pages.picture(page, f"report-{name}")


def test_everything_works_without_script(browser_pages: Pages, fleet: str) -> None:
    page = browser_pages.open(fleet, script=False)
    assert page.locator("script").count() == 0
    page.locator("details.fold > summary").first.click()
    fold = page.locator("details.fold[open] details.drill").first
    assert not fold.locator(".body").is_visible()
    fold.locator("summary").click()
    assert fold.locator(".body").is_visible()


def test_a_link_of_the_fleet_unfolds_its_drill(browser_pages: Pages, fleet: str) -> None:
    page = browser_pages.open(fleet, script=False)
    row = page.locator("table.fleet tr", has_text="wiki2")
    row.locator("a").click()
    drill = page.locator("details.drill", has=page.locator("h3", has_text="wiki2"))
    drill.locator(".body").wait_for(state="visible")
    assert drill.locator(".body").is_visible()


def test_on_paper_nothing_is_folded_away_and_links_work(browser_pages: Pages, fleet: str) -> None:
    page = browser_pages.open(fleet, dark=True)
    page.emulate_media(media="print")
    hidden = page.evaluate(
        "[...document.querySelectorAll('details > *, details td, details p')]"
        ".filter((e) => !e.getClientRects().length || !e.checkVisibility()).length"
    )
    assert hidden == 0
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    printed = page.pdf(prefer_css_page_size=True)
    assert printed.startswith(b"%PDF") and b"/Subtype /Link" in printed
    assert len(re.findall(rb"/Type /Page\b", printed)) > 10
    page.emulate_media(media="screen")
    folded = page.pdf(prefer_css_page_size=True)
    assert len(folded) < len(printed)


@pytest.mark.parametrize("size", [DESKTOP, PHONE])
def test_long_and_hostile_texts_do_not_break_the_page(
    browser_pages: Pages, tmp_path: Path, size: tuple[int, int]
) -> None:
    page = browser_pages.open(written(tmp_path, hostile_report()), size=size)
    page.evaluate("document.querySelectorAll('details').forEach((fold) => { fold.open = true })")
    assert sideways(page) == 0
    assert page.evaluate("window.hacked === undefined")
    browser_pages.picture(page, f"report-hostile-{size[0]}")


def hostile_report() -> ReportInput:
    long = "W" * 290
    markup = "<script>window.hacked = 1</script><img src=x onerror='window.hacked = 1'>" * 3
    check = CheckResult(name=long, passed=False, seconds=1e9, detail=markup + "x" * 3000)
    drill = make_drill(
        vm=long, host=long, point=long, id=markup, passed=False, failure=long * 3,
        warnings=(long, markup), not_proven=(long,), proven=(markup,), checks=(check,) * 3,
        phases={long: 1e9, markup: 3.0}, drvm_version=long, data_bytes=1 << 62, group=long,
        rto_seconds=1e9,
    )  # fmt: skip
    rows = (
        make_row(vm=long, host=long, policy=long, consistency=long, points_per_day=(9,) * 42),
        make_row(vm=markup, vm_uuid="2", policy=None, host=long),
        make_row(vm=long, vm_uuid="3", gone=True, points=1 << 40),
    )
    run = RunRow(
        job=long, kind="backup", vm=long, vm_uuid="uuid-web1", host=long, started=NOW, ended=NOW,
        state="failed", message=markup, hint=long,
    )  # fmt: skip
    job = JobRow(job=long, kind="copy", due=NOW, last_good=None, behind=1 << 40)
    seen = CheckRow(
        began=NOW, host=long, share=1.0, packs=1 << 40, read_bytes=1 << 62, damaged_packs=1 << 40,
        stands=True,
    )  # fmt: skip
    report = make_report(
        drill, msgspec.structs.replace(drill, id="2"), vms=rows, runs=(run,) * 7, jobs=(job,),
        checks=(seen,), problems=(long, markup), unreachable=((long, markup),),
    )  # fmt: skip
    return msgspec.structs.replace(report, repository="s3://" + long)


@pytest.mark.parametrize("size", [DESKTOP, PHONE])
def test_two_hundred_vms_stay_readable(
    browser_pages: Pages, large_fleet: Path, size: tuple[int, int]
) -> None:
    assert large_fleet.stat().st_size < MAX_PAGE_BYTES
    page = browser_pages.open(large_fleet.as_uri(), size=size)
    assert sideways(page) == 0
    screens = page.evaluate("document.documentElement.scrollHeight / window.innerHeight")
    assert screens < (8 if size == DESKTOP else 20)
    browser_pages.picture(page, f"report-200-{size[0]}", whole=False)


def test_screen_readers_are_told_what_pictures_show(browser_pages: Pages, fleet: str) -> None:
    page = browser_pages.open(fleet)
    silent = page.evaluate(
        "[...document.querySelectorAll('svg, img')].filter((e) => !e.getAttribute('aria-label')"
        " && !e.getAttribute('alt') && !e.querySelector('title')"
        " && !e.getAttribute('aria-hidden')).length"
    )
    assert silent == 0
    marks = page.evaluate("[...document.querySelectorAll('.mark')].map((e) => e.textContent)")
    assert marks and all(re.search("[a-z]", mark) for mark in marks)
    levels = page.evaluate(
        "[...document.querySelectorAll('h1, h2, h3, h4')].map((e) => Number(e.tagName[1]))"
    )
    steps = itertools.pairwise(levels)
    assert levels[0] == 1 and all(after - before <= 1 for before, after in steps)
