"""The server itself, over real connections: what slow, many and odd clients can do, and its end."""

from __future__ import annotations

import contextlib
import http.client
import logging
import re
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drvm.core.clock import SystemClock
from drvm.web import guard, server
from drvm.web.access import read_token
from drvm.web.app import make_app
from drvm.web.server import MAX_CONNECTIONS, Dashboard
from tests.fakes.dashboard import TOKEN, WEB1, FakeDaemon

WAIT_S = 20.0


def app(daemon: FakeDaemon) -> Callable[[], object]:
    return lambda: make_app(daemon, TOKEN, clock=SystemClock())


@contextlib.contextmanager
def served(daemon: FakeDaemon | None = None) -> Iterator[Dashboard]:
    dashboard = Dashboard(app(daemon or FakeDaemon()), "127.0.0.1", 0)  # type: ignore[arg-type]
    dashboard.start()
    try:
        assert dashboard.started.wait(WAIT_S)
        yield dashboard
    finally:
        dashboard.stop()


@pytest.fixture(scope="module")
def dashboard() -> Iterator[Dashboard]:
    with served() as running:
        yield running


def connect(dashboard: Dashboard) -> socket.socket:
    return socket.create_connection(("127.0.0.1", dashboard.port), WAIT_S)


def said(dashboard: Dashboard, request: bytes) -> bytes:
    """All that is answered until the server closes."""
    with connect(dashboard) as client:
        client.sendall(request)
        return rest(client)


def rest(client: socket.socket) -> bytes:
    parts = []
    with contextlib.suppress(ConnectionError):
        while part := client.recv(65536):
            parts.append(part)
    return b"".join(parts)


def ask(dashboard: Dashboard, path: str, **headers: str) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", dashboard.port, timeout=WAIT_S)
    try:
        connection.request("GET", path, headers=headers)
        return connection.getresponse().status
    finally:
        connection.close()


def session(dashboard: Dashboard) -> str:
    connection = http.client.HTTPConnection("127.0.0.1", dashboard.port, timeout=WAIT_S)
    origin = f"http://127.0.0.1:{dashboard.port}"
    headers = {"Origin": origin, "Content-Type": "application/x-www-form-urlencoded"}
    connection.request("POST", "/login", f"token={TOKEN}", headers)
    answer = connection.getresponse()
    cookie = answer.headers["Set-Cookie"].partition(";")[0]
    connection.close()
    return cookie


def stream(dashboard: Dashboard, cookie: str) -> socket.socket:
    client = connect(dashboard)
    head = f"GET /events HTTP/1.1\r\nHost: localhost\r\nCookie: {cookie}\r\n\r\n"
    client.sendall(head.encode())
    return client


# -- odd requests -----------------------------------------------------------------------------
@pytest.mark.parametrize(
    "target",
    [
        b"/static/../access.py",
        b"/static/..%2f..%2f..%2fetc/passwd",
        b"/../../../../etc/passwd",
        b"/static/%2e%2e/%2e%2e/core/errors.py",
        b"/static/....//access.py",
        b"/static/live.js%00",
        b"/static/.%5c..%5caccess.py",
        b"http://127.0.0.1/static/access.py",
        b"//evil.example/%2e%2e",
        b"/;/static/live.js",
        b"*",
    ],
)
def test_no_target_leads_out_of_the_paths_that_are_there(
    dashboard: Dashboard, target: bytes
) -> None:
    request = b"GET " + target + b" HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    assert said(dashboard, request).startswith(b"HTTP/1.1 404 ")


@pytest.mark.parametrize(
    "head",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\n\r\n",
        b"GET / HTTP/1.0\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n",
        b"POST /login HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\n" + b"X-A: " + b"x" * server.HEADERS_BYTES * 2,
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"\x00" * 64 + b"\r\n\r\n",
        b"GET /\xff HTTP/1.1\r\nHost: localhost\r\n\r\n",
    ],
)
def test_what_is_no_request_for_us_is_400(dashboard: Dashboard, head: bytes) -> None:
    assert said(dashboard, head).startswith(b"HTTP/1.1 400 ")


_token = st.from_regex(r"[A-Za-z-]{1,20}", fullmatch=True)
_segment = st.sampled_from(
    [
        *("", ".", "..", "vm", "drill", "backup", "login", "logout", "events", "static", "live.js"),
        *("metrics", "report.json", "runs", WEB1, "drill-web1-24", "screen.png", "%2e", "\0"),
    ]
)
_value = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=60)


@settings(max_examples=100)
@given(
    method=st.sampled_from(["GET", "POST", "HEAD", "PUT", "DELETE", "OPTIONS", "BREW"]),
    path=st.text(max_size=60) | st.lists(_segment, max_size=5).map("/".join),
    headers=st.dictionaries(_token, _value, max_size=6),
    body=st.binary(max_size=200),
)
def test_no_request_without_a_token_gets_more_than_the_login(
    method: str, path: str, headers: dict[str, str], body: bytes
) -> None:
    """Whatever is asked: no success but the login page and its look, no trace, and no crash."""
    from tests.unit.web.conftest import TestClient

    daemon = FakeDaemon()
    client = TestClient(
        make_app(daemon, TOKEN),
        base_url="http://127.0.0.1",
        follow_redirects=False,
        raise_server_exceptions=True,
    )
    kept = {name: value for name, value in headers.items() if name.lower() != "content-length"}
    url = "/" + "".join(f"%{byte:02x}" for byte in path.encode("utf-8", "surrogatepass"))
    answer = client.request(method, url, headers=kept, content=body)
    assert answer.status_code in (200, 303, 400, 401, 403, 404, 405, 413, 415)
    if answer.status_code == 200:
        assert path.split("/")[0] in ("login", "static")
    assert "Traceback" not in answer.text and "web1" not in answer.text
    assert daemon.began == [] and daemon.gathered == 0
    assert dict(answer.headers) | guard.HEADERS == dict(answer.headers)


# -- slow and many ----------------------------------------------------------------------------
@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "REQUEST_S", 0.3)
    monkeypatch.setattr(server, "KEPT_ALIVE_S", 0.3)
    monkeypatch.setattr(guard, "BODY_S", 0.3)
    monkeypatch.setattr(server, "STALLED_MS", 300)


@pytest.mark.usefixtures("hurried")
@pytest.mark.parametrize("start", [b"", b"GET / HT", b"GET / HTTP/1.1\r\nHost: localhost\r\nX-"])
def test_who_does_not_finish_a_request_is_cut_off(start: bytes) -> None:
    with served() as dashboard, connect(dashboard) as client:
        client.sendall(start)
        assert rest(client) == b""


@pytest.mark.usefixtures("hurried")
def test_dripping_headers_win_no_time() -> None:
    with served() as dashboard, connect(dashboard) as client:
        began = time.monotonic()
        with contextlib.suppress(ConnectionError):
            while time.monotonic() - began < WAIT_S:
                client.sendall(b"G" if time.monotonic() == began else b"x")
                time.sleep(0.05)
        assert time.monotonic() - began < WAIT_S


@pytest.mark.usefixtures("hurried")
def test_a_further_request_on_a_kept_connection_has_no_more_time() -> None:
    head = b"GET /static/icon.svg HTTP/1.1\r\nHost: localhost\r\n\r\n"
    with served() as dashboard, connect(dashboard) as client:
        client.sendall(head + head + b"GET / HT")
        assert rest(client).count(b"HTTP/1.1 200 OK") == 2


@pytest.mark.usefixtures("hurried")
def test_a_body_that_does_not_come_is_408() -> None:
    with served() as dashboard, connect(dashboard) as client:
        head = (
            "POST /login HTTP/1.1\r\nHost: localhost\r\nSec-Fetch-Site: same-origin\r\n"
            "Content-Type: application/x-www-form-urlencoded\r\nContent-Length: 9\r\n\r\ntok"
        )
        client.sendall(head.encode())
        assert rest(client).startswith(b"HTTP/1.1 408 ")


@pytest.mark.usefixtures("hurried")
def test_who_reads_nothing_is_cut_off() -> None:
    daemon = FakeDaemon()
    daemon.metrics = lambda: "x" * 2**24  # type: ignore[method-assign]
    with served(daemon) as dashboard, connect(dashboard) as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        request = (
            f"GET /metrics HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {TOKEN}\r\n\r\n"
        )
        client.sendall(request.encode())
        assert dashboard._server is not None
        ends = time.monotonic() + WAIT_S
        while time.monotonic() < ends and not dashboard._server.server_state.connections:
            time.sleep(0.02)
        while time.monotonic() < ends and dashboard._server.server_state.connections:
            time.sleep(0.02)
        assert not dashboard._server.server_state.connections


def test_more_connections_than_there_may_be_are_closed_and_the_others_served() -> None:
    with served() as dashboard, contextlib.ExitStack() as stack:
        held = [stack.enter_context(connect(dashboard)) for _ in range(MAX_CONNECTIONS)]
        with connect(dashboard) as one_more:
            assert rest(one_more) == b""
        held[0].sendall(b"GET /login HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        assert rest(held[0]).startswith(b"HTTP/1.1 200 ")


# -- its beginning and its end ----------------------------------------------------------------
def test_it_ends_within_seconds_though_streams_are_open() -> None:
    with served() as dashboard:
        cookie = session(dashboard)
        clients = [stream(dashboard, cookie) for _ in range(3)]
        for client in clients:
            assert client.recv(12) == b"HTTP/1.1 200"
        began = time.monotonic()
        dashboard.stop()
        assert time.monotonic() - began < server.STOP_S + 4
        for client in clients:
            rest(client)
            client.close()
        with pytest.raises(OSError):
            connect(dashboard)


def test_a_stream_too_many_is_refused_and_one_that_ended_gives_its_place_back() -> None:
    with served() as dashboard:
        cookie = session(dashboard)
        clients = [stream(dashboard, cookie) for _ in range(4)]
        for client in clients:
            assert client.recv(12) == b"HTTP/1.1 200"
        assert ask(dashboard, "/events", Cookie=cookie) == 429
        clients.pop().close()
        ends = time.monotonic() + WAIT_S
        again = b""
        while again != b"HTTP/1.1 200" and time.monotonic() < ends:
            with stream(dashboard, cookie) as client:
                again = client.recv(12)
        for client in clients:
            client.close()
        assert again == b"HTTP/1.1 200"


def test_a_taken_port_is_told_and_costs_nothing_else(caplog: pytest.LogCaptureFixture) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        dashboard = Dashboard(app(FakeDaemon()), "127.0.0.1", port)  # type: ignore[arg-type]
        with caplog.at_level(logging.INFO, "drvm.web"):
            dashboard.start()
            wait_for(lambda: "no dashboard" in caplog.text)
    assert f"can't listen at 127.0.0.1:{port}: address already in use" in caplog.text
    assert "daemon.dashboard.port" in caplog.text
    dashboard.stop()


def test_a_bad_token_file_is_told_and_put_right_without_a_restart(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "RETRY_S", 0.1)
    path = tmp_path / "token"
    path.write_text("open")
    path.chmod(0o644)
    dashboard = Dashboard(lambda: make_app(FakeDaemon(), read_token(path)), "127.0.0.1", 0)
    with caplog.at_level(logging.INFO, "drvm.web"):
        dashboard.start()
        wait_for(lambda: "chmod 600" in caplog.text)
        time.sleep(0.5)
        assert caplog.text.count("no dashboard") == 1
        path.chmod(0o600)
        path.write_text(TOKEN)
        assert dashboard.started.wait(WAIT_S)
    assert ask(dashboard, "/metrics", Authorization=f"Bearer {TOKEN}") == 200
    assert re.search(r"dashboard at http://127\.0\.0\.1:\d+", caplog.text)
    assert TOKEN not in caplog.text
    dashboard.stop()


def wait_for(holds: Callable[[], bool]) -> None:
    ends = time.monotonic() + WAIT_S
    while not holds() and time.monotonic() < ends:
        time.sleep(0.02)
    assert holds()
