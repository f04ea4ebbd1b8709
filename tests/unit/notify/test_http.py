from __future__ import annotations

from pathlib import Path

import pytest

from drvm.core.errors import NotifyFailed, UsageError
from drvm.notify.http import Ping, Webhook
from tests.listeners import dripping_listener, http_listener, server_context
from tests.unit.notify.messages import make_message

TOKEN = "xoxb-very-secret-token"


def url_file(tmp_path: Path, url: str) -> Path:
    path = tmp_path / "url"
    path.write_text(f"{url}\n")
    path.chmod(0o600)
    return path


def test_a_webhook_gets_one_post_of_stable_fields(tmp_path: Path) -> None:
    with http_listener() as heard:
        Webhook("chat", url_file(tmp_path, f"http://127.0.0.1:{heard.port}/{TOKEN}")).send(
            make_message()
        )
    ((method, path, _),) = heard.requests
    assert (method, path) == ("POST", f"/{TOKEN}")
    assert heard.documents() == [
        {
            "format": 0,
            "source": "drvm",
            "id": "a1b2",
            "event": "raised",
            "kind": "rpo",
            "severity": "critical",
            "key": "rpo:web1",
            "vm": "web1",
            "text": "drvm kvm1: CRITICAL: web1: the last good point is 3 d old",
            "problem": "web1: the last good point is 3 d old",
            "hint": "drvm backup web1",
            "since": "2026-11-21T04:00:00Z",
            "at": "2026-11-23T04:00:00Z",
            "host": "kvm1",
            "others": [],
        }
    ]


def test_a_ping_is_a_get(tmp_path: Path) -> None:
    with http_listener() as heard:
        Ping("dead-man", url_file(tmp_path, f"http://127.0.0.1:{heard.port}/x"), 60).ping()
    assert [request[:2] for request in heard.requests] == [("GET", "/x")]


def test_https_is_verified_against_the_authorities_of_the_system(
    tmp_path: Path, trusted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with http_listener(server_context(trusted)) as heard:
        way = Webhook("chat", url_file(tmp_path, f"https://127.0.0.1:{heard.port}/x"))
        way.send(make_message())
        monkeypatch.delenv("SSL_CERT_FILE")
        with pytest.raises(NotifyFailed, match="CERTIFICATE_VERIFY_FAILED"):
            way.send(make_message())
    assert len(heard.requests) == 1


def test_a_redirect_is_refused_and_the_other_server_hears_nothing(tmp_path: Path) -> None:
    with http_listener() as other, http_listener() as heard:
        heard.answer = lambda: (307, {"location": f"http://127.0.0.1:{other.port}/"}, b"")
        way = Webhook("chat", url_file(tmp_path, f"http://127.0.0.1:{heard.port}/x"))
        with pytest.raises(NotifyFailed, match="sends elsewhere") as caught:
            way.send(make_message())
    assert caught.value.refused
    assert other.requests == []


@pytest.mark.parametrize(("status", "refused"), [(404, True), (429, False), (503, False)])
def test_other_answers_are_failures_that_quote_the_server_without_our_secret(
    status: int, refused: bool, tmp_path: Path
) -> None:
    with http_listener() as heard:
        heard.answer = lambda: (status, {}, f"\x1b[2Jno service at /{TOKEN}".encode() + b"x" * 9999)
        way = Webhook("chat", url_file(tmp_path, f"http://127.0.0.1:{heard.port}/{TOKEN}"))
        with pytest.raises(NotifyFailed, match=f"HTTP {status}: .*no service") as caught:
            way.send(make_message())
    assert caught.value.refused == refused
    assert TOKEN not in str(caught.value) and "\x1b" not in str(caught.value)
    assert len(str(caught.value)) < 600
    assert caught.value.__context__ is None or caught.value.__suppress_context__


@pytest.mark.parametrize(
    ("opening", "drip"),
    [(b"", b""), (b"HTTP/1.1 200 OK\r\nx: ", b"y"), (b"HTTP/1.1 200 OK\r\n\r\n", b"")],
    ids=["silence", "headers without end", "a body without end"],
)
def test_a_slow_server_holds_us_no_longer_than_the_limit(
    opening: bytes, drip: bytes, tmp_path: Path
) -> None:
    with dripping_listener(opening, drip) as port:
        way = Webhook("chat", url_file(tmp_path, f"http://127.0.0.1:{port}/x"), limit_s=0.5)
        with pytest.raises(NotifyFailed, match=r"did not answer within 0.5 s"):
            way.send(make_message())


def test_a_body_without_end_is_not_read_to_its_end(tmp_path: Path) -> None:
    with dripping_listener(b"HTTP/1.1 200 OK\r\n\r\n", b"z" * 4000) as port:
        Webhook("chat", url_file(tmp_path, f"http://127.0.0.1:{port}/x"), limit_s=5).send(
            make_message()
        )


def test_a_server_that_is_not_there_is_told_without_the_url(tmp_path: Path) -> None:
    way = Webhook("chat", url_file(tmp_path, f"http://127.0.0.1:1/{TOKEN}"))
    with pytest.raises(NotifyFailed, match="can't be asked") as caught:
        way.send(make_message())
    assert TOKEN not in str(caught.value)


@pytest.mark.parametrize(
    "text",
    ["", "chat.example.org", "ftp://x/y", "https://", "https://a/\nhttps://b/", "https://[", "é"],
)
def test_what_is_no_url_is_not_asked_and_not_shown(text: str, tmp_path: Path) -> None:
    path = url_file(tmp_path, text)
    with pytest.raises(UsageError) as caught:
        Webhook("chat", path).send(make_message())
    assert str(path) in str(caught.value)
    assert not text or text.splitlines()[0] not in str(caught.value)


def test_a_url_that_everybody_can_read_is_not_used(tmp_path: Path) -> None:
    path = url_file(tmp_path, "http://127.0.0.1:1/x")
    path.chmod(0o644)
    with pytest.raises(UsageError, match="every user of this machine can read"):
        Webhook("chat", path).send(make_message())
