from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drvm.core.errors import AgentError
from drvm.host import agent
from tests.fakes.clock import FakeClock

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=12), inner),
    max_leaves=8,
)


class ScriptedAgent:
    """Answers the commands it is sent one after the other."""

    def __init__(self, *answers: Any) -> None:
        self.answers = list(answers)

    def __call__(
        self, command: str, arguments: Mapping[str, Any] | None = None, *, timeout_s: int = 5
    ) -> Any:
        return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]


@given(st.text(max_size=200))
def test_a_reply_of_any_text_is_a_value_or_an_agent_error(text: str) -> None:
    try:
        agent.reply(text)
    except AgentError:
        return
    assert "return" in json.loads(text)


def test_a_reply_nested_without_end_is_an_agent_error() -> None:
    with pytest.raises(AgentError):
        agent.reply("[" * 200_000)


def test_a_reply_of_a_hundred_megabytes_is_an_agent_error() -> None:
    with pytest.raises(AgentError):
        agent.reply('{"return": "' + "x" * 100_000_000 + '"}')


@given(json_values, json_values)
def test_a_guest_command_with_hostile_answers_ends(first: Any, second: Any) -> None:
    clock = FakeClock()
    try:
        result = agent.run(ScriptedAgent(first, second), ["true"], b"", 3.0, clock)
    except AgentError:
        return
    assert isinstance(result.exit_code, int)


def test_a_guest_command_returns_its_exit_code_and_its_bounded_streams() -> None:
    out = base64.b64encode(b"x" * 100_000).decode()
    done = {"exited": True, "exitcode": 3, "out-data": out}
    talk = ScriptedAgent({"pid": 7}, {"exited": False}, done)
    result = agent.run(talk, ["cat"], b"in", 3.0, FakeClock())
    assert (result.exit_code, len(result.stdout), result.stderr) == (3, 65536, b"")


def test_a_guest_command_that_never_ends_is_given_up() -> None:
    talk = ScriptedAgent({"pid": 7}, {"exited": False})
    with pytest.raises(AgentError, match="did not end"):
        agent.run(talk, ["sleep"], b"", 3.0, FakeClock())


@pytest.mark.parametrize("name", ["exitcode", "signal"])
def test_an_end_that_no_command_has_is_an_agent_error(name: str) -> None:
    """Python does not write numbers of so many digits, and so broke off the drill."""
    ended = {"exited": True, name: int("9" * 4300)}
    with pytest.raises(AgentError):
        agent.run(ScriptedAgent({"pid": 1}, ended), ["true"], b"", 3.0, FakeClock())


def test_an_exit_code_of_windows_is_one() -> None:
    ended = {"exited": True, "exitcode": 0xC0000005}
    result = agent.run(ScriptedAgent({"pid": 1}, ended), ["true"], b"", 3.0, FakeClock())
    assert result.exit_code == 0xC0000005
