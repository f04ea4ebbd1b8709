"""Calls of which nobody knows whether they come back."""

from __future__ import annotations

import threading

import pytest

from drvm.core.errors import AgentError, HostError
from drvm.host.patience import within


def test_what_comes_back_in_time_is_passed_on() -> None:
    assert within(30, lambda: 7) == 7


def test_what_is_raised_in_time_is_raised() -> None:
    def fails() -> None:
        raise HostError("no")

    with pytest.raises(HostError, match="no"):
        within(30, fails)


def test_what_does_not_come_back_is_not_waited_for() -> None:
    never = threading.Event()
    with pytest.raises(AgentError, match="did not come back"):
        within(0.05, never.wait)
    never.set()
