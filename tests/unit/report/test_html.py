import base64
import datetime as dt
import hashlib
import html
import html.parser
import re
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from drvm.core.text import printable
from drvm.report import drill_views
from drvm.report.html import MAX_SHOWN_CHARS, environment, html_report
from drvm.report.input import CheckRow, JobRow, RunRow
from drvm.report.model import CheckResult
from drvm.report.views import overview
from tests.unit.report.results import NOW

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
    failed = CheckResult(name=text, passed=False, seconds=1.0, detail=text or "-")
    drill = make_drill(
        vm=text, host=text, point=text, consistency=text, id=text, passed=False,
        failure=text or "-", warnings=(text,), not_proven=(text,), proven=(text,), checks=(failed,),
        phases={text: 1.0}, drvm_version=text,
    )  # fmt: skip
    row = make_row(vm=text, host=text, policy=text, consistency=text)
    bare = make_row(vm=text, host=text, policy=None, vm_uuid="2")
    run = RunRow(
        job=text, kind="backup", vm=text, vm_uuid="uuid-web1", host=text, started=row_moment(row),
        ended=row_moment(row), state="failed", message=text or "-", hint=text or "-",
    )  # fmt: skip
    job = JobRow(job=text + "c", kind="copy", due=NOW, last_good=None, behind=3)
    check = CheckRow(
        began=run.started, host=text, share=0.5, packs=1, read_bytes=1, damaged_packs=1, stands=True
    )
    report = make_report(
        drill, vms=(row, bare), runs=(run,), jobs=(job,), checks=(check,), problems=(text, text),
        unreachable=((text, text),),
    )  # fmt: skip
    return html_report(report)


def row_moment(row: Any) -> dt.datetime:
    moment = row.last_point_created
    assert isinstance(moment, dt.datetime)
    return moment


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
    fleet = page[page.index('id="fleet"') :]
    order = [fleet.index(f"<strong>{name}</strong>") for name in ("broken", "late", "calm")]
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
    text = Page(html_report(report(vms=()))).text
    assert "No VM is known" in text and "0 of 0" in text


def test_an_empty_fleet_is_not_green(report: Make) -> None:
    page = html_report(report(vms=()))
    assert '<p class="state warn">' in page and "nothing is protected" in page


def test_commands_in_hints_are_marked(row: Make, report: Make) -> None:
    late = row(vm="<b>; $(x)", rpo_state="missed", rpo_age_seconds=9e9)
    page = html_report(report(vms=(late,)))
    assert "<code>drvm backup &#39;&lt;b&gt;; $(x)&#39;</code>" in page


@pytest.mark.parametrize(
    ("hint", "marked"),
    [
        ("drvm drill db1; drvm status says more", ["drvm drill db1", "drvm status"]),
        ("drvm check --read-data says which", ["drvm check --read-data"]),
        ("restore it (drvm restore a.example.org), or not", ["drvm restore a.example.org"]),
        ("drvm run 'it'\"'\"'s', then wait", ["drvm run 'it'\"'\"'s'"]),
        ("look at the network", []),
    ],
)
def test_what_is_to_be_typed_is_told_from_what_is_said(hint: str, marked: list[str]) -> None:
    shown = environment().filters["commands"](hint)
    assert [html.unescape(code) for code in re.findall("<code>(.*?)</code>", shown)] == marked
    assert html.unescape(re.sub("<[^>]*>", "", shown)) == hint


@example("\t")
@given(hint=st.text(max_size=300) | st.text(alphabet="drvm bku'\".;<", max_size=300))
def test_marking_commands_changes_no_word(hint: str) -> None:
    shown = environment().filters["commands"](f"drvm backup {hint}")
    assert "drvm backup" in shown
    assert html.unescape(re.sub("</?code>", "", shown)) == printable(
        f"drvm backup {hint}", MAX_SHOWN_CHARS, lines=True
    )


def test_what_the_latest_drills_did_not_prove_is_told_once_for_all(
    drill: Make, row: Make, report: Make
) -> None:
    vms = tuple(row(vm=name, vm_uuid=name) for name in "abc")
    lines = {"a": ("x", "y"), "b": ("x",), "c": ("x", "x")}
    latest = [drill(id=vm, vm=vm, vm_uuid=vm, not_proven=lines[vm]) for vm in "abc"]
    before = drill(id="0", vm="a", vm_uuid="a", started=NOW - dt.timedelta(days=9))
    drills = [*latest, before]
    told = overview(report(*drills, vms=vms)).not_proven
    assert told == (("x", 3), ("y", 1))
    text = " ".join(Page(html_report(report(*drills, vms=vms))).text.split())
    assert "What the latest drills did not prove x (3 of 3 VMs) y (1 of 3 VMs)" in text
    alone = html_report(report(drill(), vms=(row(),)))
    assert "What the latest drills did not prove" not in alone


def test_how_old_the_oldest_proof_is_stands_on_top(drill: Make, row: Make, report: Make) -> None:
    vms = tuple(row(vm=name, vm_uuid=name) for name in "ab")
    drills = [drill(id=v, vm=v, vm_uuid=v, started=NOW - dt.timedelta(days=d)) for v, d in
              (("a", 2), ("b", 40))]  # fmt: skip
    text = Page(html_report(report(*drills, vms=vms))).text
    assert "proven recoverable by their latest drill, the oldest 40 d ago" in text


def test_a_drill_that_failed_is_one_click_from_the_first_line(drill: Make, report: Make) -> None:
    page = html_report(report(drill(passed=False), host="kvm1"))
    assert '<a class="small" href="#drill-1">see the drill</a>' in page and 'id="drill-1"' in page
    assert "seen from kvm1" in page


def test_vms_that_another_drvm_backs_up_are_not_called_gone(row: Make, report: Make) -> None:
    there = row(vm="there", vm_uuid="2", gone=True, elsewhere=True)
    vms = (row(), there, row(vm="lost", vm_uuid="3", gone=True))
    view = overview(report(vms=vms))
    assert [v.row.vm for v in view.gone] == ["lost"]
    assert [v.row.vm for v in view.elsewhere] == ["there"]


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
    assert page.count(" 6h0") == 4 and page.count("h0") == 2 * 4
    assert "time to recover in the last 4 drills, the longest 3 min 23 s" in page
    assert "4 of the last 4 drills passed" in page
    assert "h0" not in html_report(report(drills[0]))


def test_only_the_latest_drill_and_those_that_failed_of_late_are_told(
    drill: Make, report: Make
) -> None:
    def past(days: int, **changes: Any) -> Any:
        return drill(id=f"d{days}", started=drill().started - dt.timedelta(days=days), **changes)

    drills = [past(0), past(7), past(14, passed=False), past(60, passed=False), past(70)]
    page = html_report(report(*drills))
    assert [f"<code>d{days}</code>" in page for days in (0, 7, 14, 60, 70)] == [
        True, False, True, False, False,
    ]  # fmt: skip
    assert "3 older drills are left out" in page
    assert page.index("<code>d0</code>") < page.index("1 earlier drill that failed")


def test_what_failed_is_unfolded_and_what_passed_is_not(
    drill: Make, row: Make, report: Make
) -> None:
    vms = (row(vm_uuid="1"), row(vm_uuid="2"))
    passed, failed = drill(id="a", vm_uuid="1"), drill(id="b", vm_uuid="2", passed=False)
    page = html_report(report(passed, failed, vms=vms))
    folds = re.findall(r'<details class="drill( failed)?"( open)?>', page)
    assert folds == [(" failed", " open"), ("", "")]


def test_a_group_is_told_together_and_in_its_order(drill: Make, row: Make, report: Make) -> None:
    vms = tuple(row(vm=name, vm_uuid=name) for name in ("app", "db"))
    drills = [
        drill(
            id=name,
            vm=name,
            vm_uuid=name,
            group="g1",
            stage=stage,
            group_rto_seconds=318.0,
            rto_target_seconds=300.0,
        )
        for name, stage in (("app", 1), ("db", 0))
    ]
    text = " ".join(Page(html_report(report(*drills, vms=vms))).text.split())
    assert "2 VMs together all passed" in text
    assert "all recovered in 5 min 18 s over 5 min · started in the order db, app" in text


def test_a_group_that_lacks_a_member_does_not_read_as_proof_of_the_whole(
    drill: Make, row: Make, report: Make
) -> None:
    lacking = ("web2: it has no good point",)
    text = Page(html_report(report(drill(group="g1", stage=1, group_absent=lacking)))).text
    assert "all passed" not in text.replace("not all passed", "")
    assert "Not drilled with them: web2: it has no good point" in text


def test_many_concerns_of_one_sort_are_one_line_with_a_list(row: Make, report: Make) -> None:
    vms = tuple(row(vm=f"vm{n}", vm_uuid=str(n), rpo_state="missed") for n in range(5))
    text = Page(html_report(report(vms=vms))).text
    assert "5 VMs have no good point that is young enough" in text and "all 5 of them" in text
    assert "things need action now" in text


def test_a_large_fleet_folds_what_is_well(row: Make, report: Make) -> None:
    vms = [row(vm=f"vm{n}", vm_uuid=str(n)) for n in range(60)]
    vms[50] = row(vm="late", vm_uuid="50", rpo_state="missed")
    page = html_report(report(vms=tuple(vms)))
    assert "59 VMs of which nothing is known to be wrong" in page
    fold = page.index("59 VMs of which")
    assert page.rindex("<strong>late</strong>", 0, fold) < fold < page.index("<strong>vm0</strong>")


def test_pictures_that_are_too_many_are_left_out_and_named(
    drill: Make, row: Make, report: Make, monkeypatch: pytest.MonkeyPatch, png: bytes
) -> None:
    monkeypatch.setattr(drill_views, "MAX_PICTURES_BYTES", len(png))
    vms = (row(vm_uuid="1"), row(vm_uuid="2"))
    drills = [
        drill(id=uuid, vm_uuid=uuid, screenshot_png=png, passed=uuid == "1") for uuid in ("1", "2")
    ]
    page = html_report(report(*drills, vms=vms))
    assert page.count("<img") == 1 and page.index("<img") < page.index("<code>1</code>")
    assert "is too large for this page" in page
