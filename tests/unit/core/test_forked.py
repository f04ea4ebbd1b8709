"""Work in a fork has no rights, no time to lose, and no way back."""

from __future__ import annotations

import itertools
import os

import pytest

from drvm.core.errors import ProcessFailed
from drvm.core.forked import forked


def test_what_the_work_returns_comes_back() -> None:
    assert forked(lambda: b"said", limit_s=30, max_bytes=100) == b"said"
    assert forked(lambda: b"", limit_s=30, max_bytes=100) == b""


def test_the_work_is_done_as_nobody() -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can become nobody")
    said = forked(
        lambda: f"{os.getresuid()} {os.getresgid()} {os.getgroups()}".encode(),
        limit_s=30,
        max_bytes=100,
    )
    assert said == b"(65534, 65534, 65534) (65534, 65534, 65534) []"


def test_work_that_does_not_end_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    children = []

    def fork() -> int:
        children.append(_fork())
        return children[-1]

    _fork = os.fork
    monkeypatch.setattr(os, "fork", fork)
    assert forked(_never, limit_s=0.3, max_bytes=9) is None
    (child,) = children
    with pytest.raises(ChildProcessError):
        os.waitpid(child, os.WNOHANG)


def _never() -> bytes:
    for _ in itertools.count():
        pass
    return b""


def test_work_that_fails_or_says_too_much_is_an_error() -> None:
    with pytest.raises(ProcessFailed, match="has ended"):
        forked(lambda: bytes([1 // len(b"")]), limit_s=30, max_bytes=9)
    with pytest.raises(ProcessFailed, match="too much"):
        forked(lambda: bytes(1 << 20), limit_s=30, max_bytes=9)
