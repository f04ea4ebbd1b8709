"""What the pages show, and that text from outside stays text."""

from __future__ import annotations

import html.parser
import re
from typing import TYPE_CHECKING

import click
import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from drvm.cli.main import program
from drvm.core.errors import DrvmError
from drvm.report.model import CheckResult
from drvm.web.latest import FRESH_S, OLD_S
from tests.fakes.clock import FakeClock
from tests.fakes.dashboard import (
    DB1,
    OLD,
    SCREEN,
    TOKEN,
    WEB1,
    FakeDaemon,
    drill,
    row,
    run,
    some_id,
)

if TYPE_CHECKING:
    from starlette.testclient import TestClient

VOID = {"meta", "img", "br", "hr", "link", "input"}
HOSTILE = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "' onmouseover='alert(1)",
    "</pre></style></title></textarea><svg onload=alert(1)>",
    "{{ 7 * 7 }} {% raw %}",
    "javascript:alert(1)",
    "<!-- ]]> -->",
    "\x1b[31m\u202e\x00",
    "a\r\nset-cookie: x=y\r\n\r\nevent: page\ndata: z",
    "../../etc/passwd",
    "$(reboot) `reboot` ; reboot",
]


class Shape(html.parser.HTMLParser):
    """Tags with the names of their attributes: what hostile text must not change."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, tuple[str, ...]]] = []
        self.attributes: list[tuple[str, str]] = []
        self.depth = 0
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, tuple(name for name, _ in attrs)))
        self.attributes += [(name, value or "") for name, value in attrs]
        self.depth += tag not in VOID

    def handle_endtag(self, tag: str) -> None:
        self.depth -= 1


def hostile(daemon: FakeDaemon, text: str) -> None:
    """Everything that comes from outside says ``text``."""
    daemon.vms = (
        row(text, WEB1, 30, host=text, policy=text, consistency=text, rpo_state="missed"),
        row(text, DB1, 1, policy=None),
    )
    check = CheckResult(name=text[:300], passed=False, seconds=1.0, detail=text)
    daemon.drills = (
        drill(text, WEB1, 3, None, id="drill-1", point=text, consistency=text, failure=text,
              warnings=(text,), proven=(text,), not_proven=(text,), host=text, checks=(check,)),
    )  # fmt: skip
    said = {"message": text, "hint": text, "result": text, "host": text}
    daemon.ended = (
        run(text, text, WEB1, 2, id="a", kind="backup", state="failed", **said),
        run(text, text, WEB1, 3, id="b", kind="drill", state="lost", **said),
        run(text, "", "", 3, id="c", kind="gc", state="warned", **said),
    )
    daemon.now_running = (
        run(text, text, WEB1, 0.1, id="d", kind="backup", ended=None, state="running", stage=text),
    )


PAGES = ["/", f"/vm/{WEB1}", "/runs", "/runs?state=failed", "/drill/drill-1"]


def renewed(client: TestClient, clock: FakeClock) -> None:
    clock.sleep(OLD_S + 1)
    client.get("/")
    clock.sleep(OLD_S + 1)


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_changes_no_page(
    client: TestClient, daemon: FakeDaemon, clock: FakeClock, text: str
) -> None:
    hostile(daemon, "plain")
    renewed(client, clock)
    plain = {path: Shape(client.get(path).text) for path in PAGES}
    hostile(daemon, text)
    renewed(client, clock)
    for path in PAGES:
        answer = client.get(path)
        assert answer.status_code == 200
        shape = Shape(answer.text)
        assert shape.tags == plain[path].tags and shape.depth == 0
        assert not [name for name, _ in shape.attributes if name.startswith("on")]
        links = [value for name, value in shape.attributes if name in ("href", "src", "action")]
        assert all(re.match(r"/(?!/)|data:image/png;base64,", link) for link in links)
        assert not set(answer.text) & {"\x1b", "\u202e", "\x00"}


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=25)
@given(text=st.text(max_size=80))
def test_any_text_is_only_text(
    client: TestClient, daemon: FakeDaemon, clock: FakeClock, text: str
) -> None:
    hostile(daemon, "plain" if not text.strip() else text)
    renewed(client, clock)
    for path in PAGES[:2]:
        shape = Shape(client.get(path).text)
        assert shape.depth == 0
        assert [tag for tag, _ in shape.tags].count("script") == 1


def test_the_overview_shows_what_needs_attention_first(client: TestClient) -> None:
    page = client.get("/").text
    wanted = ("action now", "What needs attention first", "Running now", "The fleet", "Jobs")
    order = [page.index(words) for words in wanted]
    assert order == sorted(order)
    assert "(RPO)" in page and "never drilled" in page and "reading vda" in page
    fleet = page[order[3] :]
    assert fleet.index(">db1<") < fleet.index(">scratch<") < fleet.index(">mail<")


def test_a_fleet_without_trouble_is_told_to_be_calm(
    client: TestClient, daemon: FakeDaemon, clock: FakeClock
) -> None:
    daemon.vms, daemon.drills, daemon.ended = (daemon.vms[0],), daemon.drills[:1], ()
    renewed(client, clock)
    page = client.get("/").text
    assert "Nothing is known to be wrong." in page and "attention first" not in page


def test_a_vm_has_a_restore_command_for_each_point(client: TestClient) -> None:
    page = client.get(f"/vm/{WEB1}").text
    assert len(re.findall("drvm restore [0-9a-f]{16} --replace", page)) == 14
    assert f"drvm restore {some_id(WEB1)} --replace" in page


def test_a_vm_that_is_gone_is_restored_without_replacing_anything(
    client: TestClient, daemon: FakeDaemon, clock: FakeClock
) -> None:
    daemon.vms = (msgspec.structs.replace(daemon.vms[0], gone=True, host="gone"),)
    renewed(client, clock)
    page = client.get(f"/vm/{WEB1}").text
    assert f"{some_id(WEB1)} --start" in page and "--replace" not in page


def test_image_files_come_back_as_files(
    client: TestClient, daemon: FakeDaemon, clock: FakeClock
) -> None:
    daemon.vms = (msgspec.structs.replace(daemon.vms[0], machine=False),)
    renewed(client, clock)
    page = client.get(f"/vm/{WEB1}").text
    assert f"drvm restore {some_id(WEB1)} --output web1" in page
    assert "--replace" not in page and "drvm boot" not in page


def test_a_command_is_safe_to_paste_whatever_the_vm_is_called(
    client: TestClient, daemon: FakeDaemon, clock: FakeClock
) -> None:
    daemon.vms = (row("$(reboot); x", WEB1, 1),)
    renewed(client, clock)
    commands = re.findall(r'<code id="[^"]*">([^<]*)</code>', client.get(f"/vm/{WEB1}").text)
    assert commands and all(re.fullmatch(r"[A-Za-z0-9 ./-]+", text) for text in commands)


def test_every_command_is_one_that_drvm_takes(client: TestClient) -> None:
    commands = re.findall(r'<code id="[^"]*">drvm ([^<]*)</code>', client.get(f"/vm/{WEB1}").text)
    assert commands
    for words in {re.sub("[0-9a-f]{16}", "0" * 16, text) for text in commands}:
        verb, *arguments = words.split()
        found = program.get_command(click.Context(program), verb)
        assert found is not None
        found.make_context(verb, arguments).close()


def test_buttons_are_there_only_for_what_may_be_started(client: TestClient) -> None:
    assert "Drill now" in client.get(f"/vm/{WEB1}").text
    page = client.get(f"/vm/{OLD}").text
    assert "Drill now" not in page and "No policy lets this VM" in page


def test_what_was_asked_for_is_confirmed_and_nothing_else(client: TestClient) -> None:
    assert "The drill was asked for" in client.get(f"/vm/{WEB1}?began=drill").text
    assert "asked for, and begins" not in client.get(f"/vm/{WEB1}?began=<b>x").text


def test_a_drill_is_shown_with_its_picture(client: TestClient) -> None:
    page = client.get("/drill/drill-web1-24").text
    assert "data:image/png;base64," in page and "Not proven" in page
    picture = client.get("/drill/drill-web1-24/screen.png")
    assert (picture.content, picture.headers["content-type"]) == (SCREEN, "image/png")


def test_runs_can_be_chosen_by_their_state(client: TestClient) -> None:
    assert "has no room for an overlay" in client.get("/runs?state=failed").text
    assert "has no room for an overlay" not in client.get("/runs?state=done").text
    assert "has no room for an overlay" in client.get("/runs?state=<script>").text


def test_the_json_is_the_reports(client: TestClient) -> None:
    document = client.get("/report.json").json()
    assert {vm["vm"] for vm in document["vms"]} == {"web1", "db1", "mail", "scratch"}
    assert "screenshot_png" not in document["drills"][0]


def test_pages_share_one_report_until_it_is_no_longer_fresh(
    client: TestClient, daemon: FakeDaemon, clock: FakeClock
) -> None:
    for _ in range(3):
        client.get("/")
    assert daemon.gathered == 1
    clock.sleep(OLD_S + FRESH_S)
    client.get("/")
    assert daemon.gathered == 2


def test_a_report_that_cant_be_renewed_is_shown_with_the_reason(
    client: TestClient, daemon: FakeDaemon, clock: FakeClock
) -> None:
    client.get("/")
    daemon.trouble = DrvmError("the store does not answer")
    renewed(client, clock)
    page = client.get("/").text
    assert "It can't be renewed: the store does not answer" in page and "The fleet" in page


def test_without_any_report_the_reason_is_told(stranger: TestClient, daemon: FakeDaemon) -> None:
    daemon.trouble = DrvmError("the store does not answer", hint="drvm doctor")
    origin = {"origin": "http://127.0.0.1:8467"}
    stranger.post("/login", data={"token": TOKEN}, headers=origin)
    answer = stranger.get("/")
    assert answer.status_code == 503
    assert "the store does not answer" in answer.text and "drvm doctor" in answer.text


def test_a_fleet_of_two_hundred_is_one_page(
    client: TestClient, daemon: FakeDaemon, clock: FakeClock
) -> None:
    daemon.vms = tuple(row(f"vm{n}", f"{n:08}-0000", 30, rpo_state="missed") for n in range(200))
    renewed(client, clock)
    page = client.get("/").text
    assert page.count('class="name"><a href="/vm/') == 200
    assert page.count("have no good point that is young enough") == 1


def test_a_job_that_was_only_stopped_is_not_called_done(
    client: TestClient, daemon: FakeDaemon
) -> None:
    daemon.ended = (run("gc", "", "", 1, state="stopped"),)
    (line,) = re.findall(r"<strong class=\"break\">gc</strong>.*?</tr>", client.get("/").text, re.S)
    assert "stopped" in line and "done" not in line


def test_a_job_with_a_warning_says_so(client: TestClient, daemon: FakeDaemon) -> None:
    daemon.ended = (run("gc", "", "", 1, state="warned", message="2 packs are there still"),)
    assert "done, with warnings" in client.get("/").text


def test_a_run_of_machines_together_leads_to_no_page_of_one(
    client: TestClient, daemon: FakeDaemon
) -> None:
    daemon.ended = (run("backup shop", "web1, db1", "shop on kvm1", 1),)
    daemon.now_running = ()
    page = client.get("/runs").text
    assert "web1, db1" in page and 'href="/vm/' not in page


def test_a_drill_of_several_leads_to_each_result(client: TestClient, daemon: FakeDaemon) -> None:
    daemon.ended = (run("drill shop", "web1, db1", "shop", 1, result="d1, d2", state="failed"),)
    page = client.get("/runs").text
    assert 'href="/drill/d1">the drill 1<' in page and 'href="/drill/d2">the drill 2<' in page
