"""Whatever the process with the appliance answers, drvm goes on or says that it can't be right."""

from __future__ import annotations

import socket
import struct
import threading
from types import SimpleNamespace

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from drvm.core.clock import SystemClock
from drvm.core.errors import RestoreError
from drvm.restore.guestfiles import wire
from drvm.restore.guestfiles.appliance import Appliance, FileProblem

GOOD = wire.Entry(b"hosts", 0o100644, 10, 4096, 0, 0, 1_700_000_000)


def ask(answer: bytes, question=lambda appliance: appliance.stat(b"/etc/hosts", follow=True)):
    ours, theirs = socket.socketpair()

    def reply() -> None:
        with theirs:
            wire.receive(theirs)
            theirs.sendall(answer)

    thread = threading.Thread(target=reply)
    thread.start()
    try:
        with ours:
            return question(Appliance(ours, SystemClock()))
    finally:
        thread.join()


def framed(result: object) -> bytes:
    answer = wire.Answer(result=msgspec.Raw(msgspec.msgpack.encode(result)))
    data = msgspec.msgpack.encode(answer)
    return struct.pack(">I", len(data)) + data


def test_an_answer_comes_as_it_was_sent():
    assert ask(framed(GOOD)) == GOOD


def test_the_guest_kernels_no_is_a_problem_of_that_file():
    data = msgspec.msgpack.encode(wire.Answer(failed=wire.Failed("statns: no\x1b[2J", 2)))
    with pytest.raises(FileProblem, match=r"no\\x1b") as caught:
        ask(struct.pack(">I", len(data)) + data)
    assert caught.value.errno == 2


@pytest.mark.parametrize(
    "result",
    [
        None,
        b"bytes",
        msgspec.structs.replace(GOOD, name=b"x" * 5000),
        msgspec.structs.replace(GOOD, size_bytes=-1),
        msgspec.structs.replace(GOOD, uid=1 << 40),
    ],
)
def test_what_can_not_be_right_is_not_taken(result):
    with pytest.raises(RestoreError, match="what can't be right"):
        ask(framed(result))


def test_no_more_is_taken_than_was_asked_for():
    with pytest.raises(RestoreError, match="what can't be right"):
        ask(framed(b"four"), lambda appliance: appliance.read(b"/x", 0, 3))


def test_a_long_page_is_not_taken():
    page = ([GOOD] * (wire.PAGE_NAMES + 1), False)
    with pytest.raises(RestoreError, match="what can't be right"):
        ask(framed(page), lambda appliance: appliance.page(b"/", 0, targets=False))


@given(st.binary(max_size=200))
def test_no_answer_makes_drvm_fail_in_another_way(data):
    with pytest.raises(RestoreError):
        ask(data)


@given(st.binary(max_size=200))
def test_no_message_makes_drvm_fail_in_another_way(data):
    with pytest.raises(RestoreError):
        ask(struct.pack(">I", len(data)) + data)


def test_a_message_that_says_that_it_is_long_is_not_waited_for():
    with pytest.raises(RestoreError, match="has ended"):
        ask(struct.pack(">I", 1 << 31) + b"x")


def test_a_message_that_never_ends_is_waited_for_no_longer_than_the_limit(monkeypatch):
    times = iter(range(0, 10_000, 50))
    clock = SimpleNamespace(monotonic_s=lambda: next(times))
    ours, theirs = socket.socketpair()
    with ours, theirs, pytest.raises(RestoreError, match="did not answer"):
        theirs.sendall(b"\0\0\0\xff" + b"x" * 100)
        monkeypatch.setattr(ours.__class__, "recv", lambda self, size: b"x")
        Appliance(ours, clock).stat(b"/", follow=True)
