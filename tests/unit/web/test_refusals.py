"""Who is refused, and that nothing happens then."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest
from starlette.websockets import WebSocketDisconnect

from drvm.core.errors import DrvmError
from drvm.web import guard
from drvm.web.access import TRIES
from tests.fakes.dashboard import DB1, TOKEN, WEB1, FakeDaemon

if TYPE_CHECKING:
    from starlette.testclient import TestClient

ORIGIN = "http://127.0.0.1:8467"
FORM = {"origin": ORIGIN, "sec-fetch-site": "same-origin"}
PAGES = ["/", f"/vm/{WEB1}", "/runs", "/drill/drill-web1-24", "/drill/drill-web1-24/screen.png"]
PROGRAMS = ["/metrics", "/report.json"]


def csrf_of(client: TestClient) -> str:
    found = re.search(r'name="csrf" value="([^"]+)"', client.get("/").text)
    assert found is not None
    return found[1]


def drill(client: TestClient, csrf: str, headers: dict[str, str]) -> int:
    answer = client.post(f"/vm/{DB1}/drill", data={"csrf": csrf}, headers=headers)
    return answer.status_code


# -- without a token --------------------------------------------------------------------------
@pytest.mark.parametrize("path", PAGES)
def test_a_page_without_a_session_leads_to_the_login(stranger: TestClient, path: str) -> None:
    answer = stranger.get(path)
    assert (answer.status_code, answer.headers["location"], answer.text) == (303, "/login", "")


@pytest.mark.parametrize("path", [*PROGRAMS, "/events"])
def test_what_programs_read_needs_the_token(stranger: TestClient, path: str) -> None:
    assert stranger.get(path).status_code == 401


@pytest.mark.parametrize("path", PROGRAMS)
def test_a_program_may_bring_the_token_with_each_request(stranger: TestClient, path: str) -> None:
    assert stranger.get(path, headers={"authorization": f"Bearer {TOKEN}"}).status_code == 200
    for wrong in (f"Bearer {TOKEN}x", f"Basic {TOKEN}", "Bearer", "Bearer ", TOKEN):
        assert stranger.get(path, headers={"authorization": wrong}).status_code == 401


def test_a_bearer_opens_no_page_and_starts_nothing(
    stranger: TestClient, daemon: FakeDaemon
) -> None:
    bearer = {"authorization": f"Bearer {TOKEN}"}
    assert stranger.get("/", headers=bearer).status_code == 303
    assert drill(stranger, "", FORM | bearer) == 403
    assert daemon.began == []


@pytest.mark.parametrize("cookie", ["", "x", TOKEN, "\x7f" * 99, "a" * 4000])
def test_a_made_up_session_is_none(stranger: TestClient, cookie: str) -> None:
    answer = stranger.get("/", headers={"cookie": f"drvm-session={cookie}"})
    assert answer.status_code == 303


def test_a_wrong_token_opens_nothing_and_is_not_shown(stranger: TestClient) -> None:
    answer = stranger.post("/login", data={"token": "guess-123"}, headers=FORM)
    assert answer.status_code == 403
    assert "set-cookie" not in answer.headers and "guess-123" not in answer.text


def test_wrong_tokens_are_throttled_by_form_and_bearer_together(stranger: TestClient) -> None:
    for _ in range(TRIES):
        stranger.get("/metrics", headers={"authorization": "Bearer guess"})
    answer = stranger.post("/login", data={"token": TOKEN}, headers=FORM)
    assert answer.status_code == 429 and answer.headers["retry-after"] == "8"
    bearer = {"authorization": f"Bearer {TOKEN}"}
    assert stranger.get("/metrics", headers=bearer).status_code == 429


def test_the_cookie_is_kept_from_scripts_and_other_sites(stranger: TestClient) -> None:
    answer = stranger.post("/login", data={"token": TOKEN}, headers=FORM)
    parts = {part.strip().lower() for part in answer.headers["set-cookie"].split(";")[1:]}
    assert parts == {"httponly", "path=/", "samesite=strict"}
    behind = {"x-forwarded-proto": "https", "host": "backup.example.org"}
    answer = stranger.post(
        "/login",
        data={"token": TOKEN},
        headers=FORM | behind | {"origin": "https://backup.example.org"},
    )
    assert "; secure" in answer.headers["set-cookie"].lower()


def test_logging_out_ends_the_session(client: TestClient) -> None:
    cookie = {"cookie": f"drvm-session={client.cookies['drvm-session']}"}
    answer = client.post("/logout", data={"csrf": csrf_of(client)}, headers=FORM)
    assert answer.status_code == 303
    assert client.get("/", headers=cookie).status_code == 303


# -- from another origin ----------------------------------------------------------------------
@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"origin": "http://evil.example"},
        {"origin": "null"},
        {"origin": "http://127.0.0.1:9999"},
        {"origin": "http://127.0.0.1"},
        {"origin": "file://127.0.0.1:8467"},
        {"origin": "http://[", "sec-fetch-site": "same-origin"},
        {"origin": ORIGIN, "sec-fetch-site": "cross-site"},
        {"origin": ORIGIN, "sec-fetch-site": "same-site"},
        {"origin": ORIGIN, "sec-fetch-site": "none"},
        {"sec-fetch-site": "same-site"},
        {"origin": "http://evil.example", "sec-fetch-site": "same-origin"},
    ],
)
def test_a_form_of_another_origin_does_nothing(
    client: TestClient, daemon: FakeDaemon, headers: dict[str, str]
) -> None:
    assert drill(client, csrf_of(client), headers) == 403
    assert client.post("/login", data={"token": TOKEN}, headers=headers).status_code == 403
    assert (
        client.post("/logout", data={"csrf": csrf_of(client)}, headers=headers).status_code == 403
    )
    assert daemon.began == []


@pytest.mark.parametrize("headers", [FORM, {"origin": ORIGIN}, {"sec-fetch-site": "same-origin"}])
def test_a_form_of_ours_does_what_it_says(
    client: TestClient, daemon: FakeDaemon, headers: dict[str, str]
) -> None:
    answer = client.post(f"/vm/{DB1}/drill", data={"csrf": csrf_of(client)}, headers=headers)
    assert (answer.status_code, answer.headers["location"]) == (303, f"/vm/{DB1}?began=drill")
    assert daemon.began == [("drill", DB1)]


def test_a_form_needs_the_mark_of_its_session(client: TestClient, daemon: FakeDaemon) -> None:
    mine = csrf_of(client)
    client.post("/login", data={"token": TOKEN}, headers=FORM)
    assert csrf_of(client) != mine
    for csrf in ("", "x", mine, csrf_of(client) + "x"):
        assert drill(client, csrf, FORM) == 403
    assert client.post(f"/vm/{DB1}/drill", headers=FORM, data={}).status_code == 415
    assert daemon.began == []


@pytest.mark.parametrize(
    "host",
    ["evil.example", "evil.example:8467", "127.0.0.1.evil.example", "localhost.evil.example", "",
     "localhost@evil.example", "127.0.0.2", "[::2]", "0.0.0.0", "127.0.0.1:8467:1", "a b"],
)  # fmt: skip
def test_another_name_for_this_machine_is_refused(client: TestClient, host: str) -> None:
    for path in ("/", "/login", "/metrics", "/static/live.js"):
        answer = client.get(path, headers={"host": host, "authorization": f"Bearer {TOKEN}"})
        assert answer.status_code == 400, path


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1", "127.0.0.1:9000", "localhost:8467", "LOCALHOST", "[::1]:8467",
     "backup.example.org", "backup.example.org:443"],
)  # fmt: skip
def test_loopback_and_the_configured_names_are_answered(client: TestClient, host: str) -> None:
    assert client.get("/static/live.js", headers={"host": host}).status_code == 200


# -- too much, and what is not there ----------------------------------------------------------
def test_a_body_that_says_it_is_too_large_is_refused_before_it_is_read(client: TestClient) -> None:
    headers = FORM | {"content-type": "application/x-www-form-urlencoded"}
    big = "token=" + "x" * guard.MAX_BODY_BYTES
    for path in ("/login", "/logout", f"/vm/{DB1}/drill"):
        answer = client.post(path, content=big, headers=headers)
        assert (answer.status_code, answer.headers["connection"]) == (413, "close")
    assert client.request("GET", "/", content=big).status_code == 413


def test_a_body_of_unknown_length_is_cut_off(client: TestClient, daemon: FakeDaemon) -> None:
    headers = FORM | {"content-type": "application/x-www-form-urlencoded"}

    def endless() -> object:
        yield f"csrf={csrf}".encode()
        for _ in range(64):
            yield b"&a=" + b"x" * 1024

    csrf = csrf_of(client)
    answer = client.post(f"/vm/{DB1}/drill", content=endless(), headers=headers)
    assert answer.status_code == 413 and daemon.began == []


@pytest.mark.parametrize(
    ("body", "kind", "status"),
    [
        ("{}", "application/json", 415),
        ("token=a", "text/plain", 415),
        ("token=a", "multipart/form-data; boundary=x", 415),
        ("token=a&token=b", "application/x-www-form-urlencoded", 400),
        ("&".join(f"a{n}=1" for n in range(9)), "application/x-www-form-urlencoded", 400),
        ("token=%ff%fe", "application/x-www-form-urlencoded", 400),
        ("token=ä", "application/x-www-form-urlencoded", 400),
    ],
)
def test_what_no_form_of_ours_sends_is_refused(
    stranger: TestClient, body: str, kind: str, status: int
) -> None:
    headers = FORM | {"content-type": kind}
    assert stranger.post("/login", content=body.encode(), headers=headers).status_code == status


@pytest.mark.parametrize(
    "path",
    ["/static/../access.py", "/static/%2e%2e/access.py", "/static/..%2faccess.py", "/static/",
     "/static//etc/passwd", "/static/%00", "/static/live.js/", "/static/live.js%00.css",
     "/../../etc/passwd", "/%2e%2e/%2e%2e/etc/passwd", "//etc/passwd", "/..%5c..%5cetc", "/vm/",
     "/vm/%2e%2e", "/drill/..%2f..%2fx/screen.png", "/.git/config", "/vm//backup",
     "/vm/nobody", "/drill/none", "/drill/none/screen.png", "/runs/", "/login/", "/favicon.ico"],
)  # fmt: skip
def test_paths_outside_are_not_there(client: TestClient, path: str) -> None:
    answer = client.get(path)
    assert answer.status_code == 404, answer.text
    assert "root:" not in answer.text and "import" not in answer.text


@pytest.mark.parametrize("method", ["PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "FOO"])
def test_other_methods_are_refused(client: TestClient, daemon: FakeDaemon, method: str) -> None:
    for path in ("/", f"/vm/{WEB1}", f"/vm/{DB1}/drill", "/login", "/metrics", "/static/live.js"):
        assert client.request(method, path).status_code == 405
    assert daemon.began == []


def test_an_action_is_no_page(client: TestClient, daemon: FakeDaemon) -> None:
    assert client.get(f"/vm/{DB1}/drill").status_code == 405
    assert client.post("/").status_code == 405
    assert daemon.began == []


@pytest.mark.parametrize(
    ("path", "status"),
    [(f"/vm/{DB1}/restore", 404), (f"/vm/{DB1}/delete", 404), ("/vm/nobody/drill", 404),
     (f"/vm/{DB1}/Drill", 404), ("/vm/9d35f2c6-48a0-4e71-b3c8-16e5d90a7f24/backup", 409)],
)  # fmt: skip
def test_nothing_else_can_be_started(
    client: TestClient, daemon: FakeDaemon, path: str, status: int
) -> None:
    answer = client.post(path, data={"csrf": csrf_of(client)}, headers=FORM)
    assert answer.status_code == status and daemon.began == []


def test_a_second_click_starts_no_second_one(client: TestClient, daemon: FakeDaemon) -> None:
    csrf = csrf_of(client)
    assert drill(client, csrf, FORM) == 303
    answer = client.post(f"/vm/{DB1}/drill", data={"csrf": csrf}, headers=FORM)
    assert answer.status_code == 409 and "runs already" in answer.text
    assert daemon.began == [("drill", DB1)]


# -- what answers say -------------------------------------------------------------------------
@pytest.mark.parametrize(
    "path", [*PAGES, *PROGRAMS, "/login", "/nope", "/static/live.js", "/static/report.css"]
)
def test_every_answer_has_the_headers_that_keep_others_out(client: TestClient, path: str) -> None:
    for host in ("127.0.0.1:8467", "evil.example"):
        answer = client.get(path, headers={"host": host})
        assert dict(answer.headers) | guard.HEADERS == dict(answer.headers)
        assert "'unsafe" not in answer.headers["content-security-policy"]
        assert "server" not in answer.headers


def test_a_bug_inside_is_logged_and_not_shown(
    client: TestClient, daemon: FakeDaemon, caplog: pytest.LogCaptureFixture
) -> None:
    def broken() -> object:
        raise RuntimeError("secret detail")

    daemon.metrics = broken  # type: ignore[method-assign,assignment]
    answer = client.get("/metrics")
    assert (answer.status_code, answer.text) == (500, "Internal Server Error")
    assert answer.headers["content-security-policy"] == guard.POLICY
    assert "secret detail" in caplog.text


def test_trouble_that_drvm_can_explain_is_explained(client: TestClient, daemon: FakeDaemon) -> None:
    def away(_vm_uuid: str) -> object:
        raise DrvmError("the store does not <b>answer</b>", hint="look at it")

    daemon.points = away  # type: ignore[method-assign,assignment]
    answer = client.get(f"/vm/{WEB1}")
    assert answer.status_code == 503
    assert "the store does not &lt;b&gt;answer" in answer.text and "look at it" in answer.text


def test_a_websocket_is_refused(client: TestClient) -> None:
    with pytest.raises(WebSocketDisconnect) as caught, client.websocket_connect("/events"):
        raise AssertionError("it was let in")
    assert caught.value.code == 1008


def test_no_page_holds_the_token_or_the_session(client: TestClient) -> None:
    session = client.cookies["drvm-session"]
    for path in (*PAGES, *PROGRAMS):
        assert TOKEN not in client.get(path).text and session not in client.get(path).text
