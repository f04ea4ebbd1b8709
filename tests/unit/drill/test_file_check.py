"""A guest's file is read in bounded pieces, and its agent is believed nothing."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drvm.core.errors import AgentError
from drvm.drill.checks import file as module
from drvm.drill.checks.base import Attempt, GuestUnderTest
from drvm.drill.checks.file import FileCheck
from tests.fakes.clock import FakeClock
from tests.fakes.drill_host import DrilledDomain, DrillHost

CONTENT = b"version 7\n" * 300_000
SUM = hashlib.sha256(CONTENT).hexdigest()


def piece(data: bytes, *, eof: bool) -> dict[str, Any]:
    return {"count": len(data), "buf-b64": base64.b64encode(data).decode(), "eof": eof}


def pieces_of(content: bytes) -> Callable[..., Any]:
    at = 0

    def read(handle: int, count: int) -> Any:
        nonlocal at
        data = content[at : at + count]
        at += len(data)
        return piece(data, eof=at >= len(content))

    return read


def attempt(
    check: FileCheck, read: Callable[..., Any], **answers: Any
) -> tuple[Attempt, DrillHost]:
    host = DrillHost(machines={"m": "<domain/>"})
    host.agent_answers = {
        "guest-file-open": lambda **_: 1000,
        "guest-file-read": read,
        "guest-file-close": lambda **_: {},
    } | answers
    return check.attempt(GuestUnderTest(DrilledDomain(host, "m"))), host  # type: ignore[arg-type]


def test_a_file_with_the_expected_content_passes_and_is_closed() -> None:
    found, host = attempt(FileCheck("/etc/app", SUM.upper()), pieces_of(CONTENT))
    assert found.passed, found
    assert host.calls.count("guest-file-read") == 3
    assert host.calls[-1] == "guest-file-close"


def test_a_file_with_another_content_fails_with_its_sum() -> None:
    found, _ = attempt(FileCheck("/etc/app", SUM), pieces_of(b"version 8\n"))
    assert (found.passed, found.answered) == (False, True)
    assert hashlib.sha256(b"version 8\n").hexdigest() in found.detail


def test_of_a_file_that_need_only_exist_one_byte_is_read() -> None:
    counts = []

    def read(handle: int, count: int) -> Any:
        counts.append(count)
        return piece(CONTENT[:count], eof=False)

    found, _ = attempt(FileCheck("/etc/app"), read)
    assert found.passed
    assert counts == [1]


def test_a_directory_which_the_agent_opens_is_no_file() -> None:
    def is_directory(**_: Any) -> None:
        raise AgentError("failed to read file: Is a directory")

    found, _ = attempt(FileCheck("/etc"), is_directory)
    assert (found.passed, found.answered) == (False, True)
    assert "Is a directory" in found.detail


def test_a_file_that_is_not_there_says_why() -> None:
    def missing(**_: Any) -> None:
        raise AgentError("No such file or directory")

    found, _ = attempt(FileCheck("/x", SUM), pieces_of(b""), **{"guest-file-open": missing})
    assert (found.passed, found.answered) == (False, True)
    assert "No such file" in found.detail


def test_an_endless_file_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_BYTES", 10 << 20)
    found, host = attempt(FileCheck("/x", SUM), lambda **_: piece(bytes(1 << 20), eof=False))
    assert not found.passed
    assert "does not end" in found.detail
    assert host.calls.count("guest-file-read") == 11
    assert host.calls[-1] == "guest-file-close"


def test_a_file_that_gives_nothing_for_ever_is_given_up() -> None:
    found, host = attempt(FileCheck("/x", SUM), lambda **_: piece(b"", eof=False))
    assert not found.passed
    assert host.calls.count("guest-file-read") < 10


def test_a_slow_file_is_given_up_when_the_time_is_up() -> None:
    clock = FakeClock()

    def slow(**_: Any) -> Any:
        clock.sleep(10)
        return piece(b"x", eof=False)

    found, _ = attempt(FileCheck("/x", SUM, timeout_s=30, clock=clock), slow)
    assert not found.passed
    assert clock.passed_s == 30


@given(
    st.one_of(
        st.none(),
        st.integers(),
        st.text(max_size=8),
        st.lists(st.integers(), max_size=2),
        st.dictionaries(
            st.sampled_from(["buf-b64", "eof", "count"]),
            st.one_of(st.booleans(), st.text(max_size=9), st.integers(), st.none()),
        ),
    )
)
def test_whatever_the_agent_says_is_an_answer_or_a_failure(said: Any) -> None:
    found, _ = attempt(FileCheck("/x", SUM, timeout_s=0), lambda **_: said)
    assert not found.passed
