from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from drvm.core.clock import SystemClock
from drvm.core.errors import NotifyFailed
from drvm.notify.http import Ping, Webhook
from drvm.notify.model import Message
from drvm.notify.postman import Postman
from tests.listeners import http_listener
from tests.unit.notify.messages import make_message
from tests.unit.notify.test_http import url_file

CLOCK = SystemClock()


class Facts:
    def __init__(self) -> None:
        self.kept: dict[str, str] = {}

    def fact(self, key: str) -> str | None:
        return self.kept.get(key)

    def set_fact(self, key: str, value: str | None) -> None:
        self.kept[key] = value or ""


class Slow:
    """A way that tells when it is let, or fails."""

    def __init__(self, name: str = "slow") -> None:
        self.name = name
        self.let, self.begun = threading.Event(), threading.Event()
        self.told: list[Message] = []
        self.error: Exception | None = None

    def send(self, message: Message) -> None:
        self.begun.set()
        self.let.wait(10)
        if self.error is not None:
            raise self.error
        self.told.append(message)


def wait_until(what: Callable[[], object], limit_s: float = 10.0) -> None:
    end_s = CLOCK.monotonic_s() + limit_s
    while not what():
        assert CLOCK.monotonic_s() < end_s, "it never came"
        CLOCK.sleep(0.01)


def every(_message: Message) -> bool:
    return True


def make_postman(facts: Facts, *ways: Slow | Webhook) -> Postman:
    return Postman([(way, every) for way in ways], [], facts, CLOCK, lambda: True)


def test_a_way_that_hangs_holds_up_neither_who_tells_nor_the_other_ways() -> None:
    slow, quick = Slow(), Slow("quick")
    quick.let.set()
    postman = make_postman(Facts(), slow, quick)
    postman.start()
    before_s = CLOCK.monotonic_s()
    postman.tell([make_message()])
    assert CLOCK.monotonic_s() - before_s < 1
    wait_until(lambda: quick.told)
    assert slow.told == []
    before_s = CLOCK.monotonic_s()
    postman.stop(0.2)
    assert CLOCK.monotonic_s() - before_s < 1
    slow.let.set()


def test_what_was_not_told_is_told_after_a_restart(tmp_path: Path) -> None:
    facts = Facts()
    make_postman(facts, Webhook("chat", tmp_path / "absent")).tell([make_message()])
    with http_listener() as heard:
        url = url_file(tmp_path, f"http://127.0.0.1:{heard.port}/x")
        postman = make_postman(facts, Webhook("chat", url))
        postman.start()
        wait_until(lambda: heard.requests)
        wait_until(lambda: not postman.outboxes()["chat"].pending)
        postman.stop()
        again = make_postman(facts, Webhook("chat", url))
        again.start()
        CLOCK.sleep(0.1)
        again.stop()
    assert [document["id"] for document in heard.documents()] == ["a1b2"]


def test_what_an_older_config_is_still_telling_neither_loses_nor_brings_back_anything() -> None:
    facts, before, after = Facts(), Slow("chat"), Slow("chat")
    old = make_postman(facts, before)
    old.start()
    old.tell([make_message()])
    assert before.begun.wait(10)
    old.stop(0.1)  # it hangs in the first message
    new = make_postman(facts, after)
    new.tell([make_message(id="2")])
    before.let.set()
    wait_until(lambda: before.told)
    wait_until(lambda: [m.id for m in old.outboxes()["chat"].pending] == ["2"])
    after.let.set()
    new.start()
    wait_until(lambda: "2" in [message.id for message in after.told])
    wait_until(lambda: not new.outboxes()["chat"].pending)
    new.stop()


def test_what_a_look_begun_under_an_older_config_found_is_told_by_the_newer_one() -> None:
    facts, way = Facts(), Slow()
    way.let.set()
    older, newer = make_postman(facts, way), make_postman(facts, way)
    older.stop()
    older.tell([make_message()])
    (courier,) = newer._couriers
    courier.look()
    assert len(way.told) == 1 and not newer.outboxes()["slow"].pending


def test_a_failure_to_tell_is_logged_once_without_secrets_and_stands_in_the_outbox(
    caplog: pytest.LogCaptureFixture,
) -> None:
    way = Slow("chat")
    way.let.set()
    way.error = NotifyFailed("the server is away")
    postman = make_postman(Facts(), way)
    with caplog.at_level(logging.INFO, "drvm"):
        postman.start()
        postman.tell([make_message()])
        wait_until(lambda: postman.outboxes()["chat"].failure)
        postman.stop()
    assert caplog.messages == ["chat: the server is away; it is tried again"]
    assert postman.outboxes()["chat"].failed == 1


def test_a_bug_of_a_way_ends_no_thread(caplog: pytest.LogCaptureFixture) -> None:
    way = Slow("chat")
    way.let.set()
    way.error = RuntimeError("oh")
    postman = make_postman(Facts(), way)
    postman.start()
    postman.tell([make_message()])
    wait_until(lambda: postman.outboxes()["chat"].failure)
    assert "this is a bug: RuntimeError: oh" in postman.outboxes()["chat"].failure
    postman.stop()


def test_a_way_is_told_only_what_it_wants() -> None:
    way = Slow()
    way.let.set()
    wanted = [(way, lambda message: message.kind == "drill")]
    postman = Postman(wanted, [], Facts(), CLOCK, lambda: True)
    postman.start()
    postman.tell([make_message(), make_message(kind="drill", id="2")])
    wait_until(lambda: way.told)
    postman.stop()
    assert [message.id for message in way.told] == ["2"]


def test_a_dead_mans_switch_is_pinged_only_while_the_daemon_works(tmp_path: Path) -> None:
    works = threading.Event()
    with http_listener() as heard:
        ping = Ping("dead-man", url_file(tmp_path, f"http://127.0.0.1:{heard.port}/x"), 3600)
        postman = Postman([], [ping], Facts(), CLOCK, works.is_set)
        postman.start()
        CLOCK.sleep(0.1)
        assert heard.requests == []
        postman.stop()
        works.set()
        postman = Postman([], [ping], Facts(), CLOCK, works.is_set)
        postman.start()
        wait_until(lambda: postman.outboxes()["dead-man"].told)
        postman.stop()
    assert len(heard.requests) == 1
