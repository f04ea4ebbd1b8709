from __future__ import annotations

import email
import email.policy
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drvm.core.errors import NotifyFailed
from drvm.notify.mail import Mail, compose
from drvm.notify.model import Event
from tests.listeners import dripping_listener, mail_listener, server_context
from tests.unit.notify.messages import make_message

PASSWORD = "correct horse battery"


def make_way(port: int, **fields: object) -> Mail:
    usual = {
        "name": "mail",
        "server": "127.0.0.1",
        "port": port,
        "security": "none",
        "sender": "drvm@example.org",
        "to": ("admin@example.org", "night@example.org"),
    }
    return Mail(**(usual | fields))  # type: ignore[arg-type]


def test_a_mail_is_plain_text_with_all_that_is_known() -> None:
    with mail_listener() as heard:
        make_way(heard.port).send(make_message())
    ((sender, to, text),) = heard.mails
    assert sender.startswith("<drvm@example.org>")
    assert to == ["<admin@example.org>", "<night@example.org>"]
    mail = email.message_from_string(text, policy=email.policy.default)
    assert mail["subject"] == "drvm kvm1: CRITICAL: web1: the last good point is 3 d old"
    assert mail["message-id"] == "<a1b2@kvm1>"
    assert mail["auto-submitted"] == "auto-generated"
    assert mail.get_content_type() == "text/plain"
    body = mail.get_content()
    assert "What to do: drvm backup web1" in body
    assert "since:    2026-11-21 04:00:00 UTC" in body


@pytest.mark.parametrize(("security", "at_once"), [("starttls", False), ("tls", True)])
def test_a_mail_goes_out_encrypted_and_with_a_login(
    security: str, at_once: bool, tmp_path: Path, trusted: Path
) -> None:
    secret = tmp_path / "password"
    secret.write_text(PASSWORD)
    secret.chmod(0o600)
    offered = server_context(trusted)
    with mail_listener(offered, at_once=at_once, login=f"u\0{PASSWORD}") as heard:
        way = make_way(heard.port, security=security, user="u", password_file=secret)
        way.send(make_message())
        assert (heard.encrypted, len(heard.mails)) == ([True], 1)
    with mail_listener(offered, at_once=at_once, login="u\0another") as heard:
        way = make_way(heard.port, security=security, user="u", password_file=secret)
        with pytest.raises(NotifyFailed, match=r"535 no: \[secret\]") as caught:
            way.send(make_message())
    assert heard.mails == [] and caught.value.refused


@pytest.mark.parametrize(("security", "at_once"), [("starttls", False), ("tls", True)])
def test_a_mail_server_with_a_strange_certificate_gets_nothing(
    security: str, at_once: bool, authority: Path
) -> None:
    with (
        mail_listener(server_context(authority), at_once=at_once) as heard,
        pytest.raises(NotifyFailed, match="CERTIFICATE_VERIFY_FAILED"),
    ):
        make_way(heard.port, security=security).send(make_message())
    assert heard.mails == []


def test_a_mail_server_that_takes_starttls_out_gets_nothing() -> None:
    with (
        mail_listener() as heard,
        pytest.raises(NotifyFailed, match="does not offer") as caught,
    ):
        make_way(heard.port, security="starttls").send(make_message())
    assert caught.value.refused and heard.mails == []


def test_a_recipient_who_is_refused_is_told_though_others_got_it() -> None:
    with mail_listener() as heard:
        with pytest.raises(NotifyFailed, match=r"nobody@example\.org"):
            make_way(heard.port, to=("a@example.org", "nobody@example.org")).send(make_message())
        with pytest.raises(NotifyFailed, match="none of the addresses"):
            make_way(heard.port, to=("nobody@example.org",)).send(make_message())
    assert [to for _, to, _ in heard.mails] == [["<a@example.org>"]]


@pytest.mark.parametrize(("answer", "refused"), [("451 later", False), ("554 never", True)])
def test_what_a_mail_server_refuses_for_good_is_told_apart(answer: str, refused: bool) -> None:
    with mail_listener() as heard:
        heard.refuse = answer
        with pytest.raises(NotifyFailed, match=answer) as caught:
            make_way(heard.port).send(make_message())
    assert caught.value.refused == refused


@pytest.mark.parametrize("opening", [b"", b"220-x\r\n"], ids=["silence", "lines without end"])
def test_a_mail_server_that_drips_holds_us_no_longer_than_the_limit(opening: bytes) -> None:
    drip = opening and b"220-x\r\n"
    with (
        dripping_listener(b"220 x\r\n" if drip else b"", b"250-x\r\n" if drip else b"") as port,
        pytest.raises(NotifyFailed),
    ):
        make_way(port, limit_s=0.5, step_s=1.0).send(make_message())


@pytest.mark.parametrize(
    ("security", "opening", "drip"),
    [("none", b"", b"220-x\r\n"), ("tls", b"\x16\x03\x03\x40\x00", b"\x02")],
    ids=["greeting", "handshake"],
)
def test_a_mail_server_that_never_ends_its_greeting_holds_us_no_longer_either(
    security: str, opening: bytes, drip: bytes
) -> None:
    with dripping_listener(opening, drip) as port, pytest.raises(NotifyFailed):
        make_way(port, security=security, limit_s=0.5, step_s=1.0).send(make_message())


texts = st.text(max_size=300) | st.sampled_from(["a\r\nBcc: x@y", "\n\n.\r\n", "\u2028X: y", "\0"])


@given(texts, texts, texts, texts)
def test_no_text_of_a_message_becomes_a_header_or_ends_the_mail(
    text: str, hint: str, vm: str, key: str
) -> None:
    message = make_message(text=text, hint=hint, vm=vm, key=key)
    mail = compose(message, "drvm@example.org", ("admin@example.org",))
    names = ["From", "To", "Subject", "Date", "Message-ID", "References", "Auto-Submitted"]
    names += ["Content-Type", "Content-Transfer-Encoding", "MIME-Version"]
    read = email.message_from_bytes(bytes(mail), policy=email.policy.default)
    assert sorted(read.keys()) == sorted(names)
    assert read["To"] == "admin@example.org"
    assert not read.is_multipart()


@pytest.mark.parametrize(
    ("event", "words"),
    [("raised", "CRITICAL"), ("reminder", "STILL CRITICAL"), ("over", "RESOLVED")],
)
def test_a_subject_says_at_a_glance_whether_it_begins_lasts_or_is_over(
    event: Event, words: str
) -> None:
    message = make_message(event)
    assert message.title().startswith(f"drvm kvm1: {words}: web1")
    assert message.body().startswith(f"{words}: web1")
    assert "CRITICAL" in message.title() or event == "over"
