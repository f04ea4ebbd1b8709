import base64
import datetime as dt
import hashlib
import html.parser
import re
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from drvm.report.html import MAX_SHOWN_CHARS, html_report
from drvm.report.model import CheckResult

Make = Callable[..., Any]

VOID = {"meta", "img", "br", "hr", "link", "input"}


class Page(html.parser.HTMLParser):
    """Tags, attributes and text as a browser would see them; knows unbalanced ones."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.balanced = True
        self.text = ""
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        self.balanced = self.balanced and bool(self.open) and self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def shape(page: str) -> list[tuple[str, list[str]]]:
    """What is left of a page without texts: hostile text must not change it."""
    return [(tag, sorted(attributes)) for tag, attributes in Page(page).tags]


def hostile(make_drill: Make, make_row: Make, make_report: Make, text: str) -> str:
    check = CheckResult(name=text, passed=False, seconds=1.0, detail=text or "-")
    drill = make_drill(
        vm=text, host=text, point=text, consistency=text, id=text, passed=False,
        failure=text or "-", warnings=(text,), not_proven=(text,), proven=(text,), checks=(check,),
        phases={text: 1.0}, drvm_version=text,
    )  # fmt: skip
    row = make_row(vm=text, host=text, policy=text, consistency=text)
    return html_report(make_report(drill, vms=(row,)))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(text=st.text(max_size=200))
def test_any_text_is_only_text(drill: Make, row: Make, report: Make, text: str) -> None:
    page = hostile(drill, row, report, text)
    assert shape(page) == shape(hostile(drill, row, report, "x"))
    assert Page(page).balanced and not Page(page).open


@pytest.mark.parametrize(
    "text",
    [
        "<script>alert(1)</script>",
        '"><img src=x onerror=alert(1)>',
        "</pre></style></title><svg onload=alert(1)>",
        "{{ 7 * 7 }} {% raw %}",
        "javascript:alert(1)",
        "<!-- ]]>",
    ],
)
def test_markup_of_a_guest_stays_text(drill: Make, row: Make, report: Make, text: str) -> None:
    page = hostile(drill, row, report, text)
    assert shape(page) == shape(hostile(drill, row, report, "x"))
    assert text in Page(page).text


def test_control_characters_are_written_out(drill: Make, row: Make, report: Make) -> None:
    page = hostile(drill, row, report, "a\x1b[2J\x00\u202eb")
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e]", page)
    assert "\\x1b[2J\\x00\\u202e" in page


def test_a_huge_detail_is_cut(drill: Make, report: Make) -> None:
    check = CheckResult(name="x", passed=True, seconds=1.0, detail="A" * 100_000)
    page = html_report(report(drill(checks=(check,))))
    assert "A" * MAX_SHOWN_CHARS in page and "A" * (MAX_SHOWN_CHARS + 1) not in page
    assert "98000 more characters" in page


def test_the_page_needs_nothing_from_outside(drill: Make, report: Make, png: bytes) -> None:
    page = Page(html_report(report(drill(screenshot_png=png))))
    assert not {"script", "link", "iframe", "object", "form"} & {tag for tag, _ in page.tags}
    for _tag, attributes in page.tags:
        assert not [name for name in attributes if name.startswith("on") or name == "style"]
        for name in ("src", "href"):
            target = attributes.get(name) or "#"
            assert target.startswith(("#", "data:image/png;base64,"))


def test_the_policy_of_the_page_allows_its_own_style_and_nothing_else(report: Make) -> None:
    page = html_report(report())
    style = re.search(r"<style>(.*?)</style>", page, re.S)
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', page)
    assert style and policy
    digest = base64.b64encode(hashlib.sha256(style[1].encode()).digest()).decode()
    assert policy[1] == (
        f"default-src 'none'; style-src 'sha256-{digest}'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )
    assert "url(" not in style[1] and "@import" not in style[1]


def test_a_screenshot_is_inside_the_page(drill: Make, report: Make, png: bytes) -> None:
    page = html_report(report(drill(screenshot_png=png)))
    assert f"data:image/png;base64,{base64.b64encode(png).decode()}" in page


def test_what_is_no_png_is_not_shown(drill: Make, report: Make) -> None:
    assert "<img" not in html_report(report(drill(screenshot_png=b"<svg onload=alert(1)>")))


def test_the_fleet_names_each_vm_and_what_is_wrong_comes_first(
    drill: Make, row: Make, report: Make
) -> None:
    vms = (
        row(vm="calm", vm_uuid="1"),
        row(vm="late", vm_uuid="2", rpo_state="missed"),
        row(vm="broken", vm_uuid="3"),
    )
    failed = drill(vm="broken", vm_uuid="3", passed=False, rto_seconds=None)
    page = html_report(report(failed, vms=vms))
    order = [page.index(f"<strong>{name}</strong>") for name in ("broken", "late", "calm")]
    assert order == sorted(order)


def test_a_vm_without_a_point_or_drill_is_said_to_be_so(row: Make, report: Make) -> None:
    bare = row(
        last_point=None, last_point_created=None, consistency=None, rpo_state="never",
        rpo_age_seconds=None,
    )  # fmt: skip
    text = Page(html_report(report(vms=(bare,)))).text
    assert "no point" in text and "never drilled" in text
    assert "nothing has been proven" in text


def test_an_empty_fleet_makes_a_page(report: Make) -> None:
    assert "0 of 0" in html_report(report(vms=()))


def test_a_drill_tells_verdict_phases_and_what_was_not_proven(drill: Make, report: Make) -> None:
    text = Page(html_report(report(drill()))).text
    for words in ("passed", "3 min 32 s", "2 min 11 s", "that it reaches other machines", "agent"):
        assert words in text


def test_several_drills_draw_their_history(drill: Make, report: Make) -> None:
    drills = [
        drill(
            id=str(day), started=drill().started - dt.timedelta(days=day), rto_seconds=200.0 + day
        )
        for day in range(4)
    ]
    page = html_report(report(*drills))
    assert page.count("<circle") == 4
    assert "<circle" not in html_report(report(drills[0]))


def test_more_drills_than_fit_are_counted(drill: Make, report: Make) -> None:
    drills = [drill(id=str(number)) for number in range(203)]
    assert "3 older drills are left out" in html_report(report(*drills))
