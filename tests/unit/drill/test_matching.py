"""A pattern finds what it should, or is given up."""

from __future__ import annotations

import pytest

from drvm.core.errors import AgentError
from drvm.drill.checks.matching import search


@pytest.mark.parametrize(
    ("pattern", "text", "found"),
    [
        ("^ready$", "one\nready\n", "ready"),
        ("^ready$", "already\n", None),
        ("x*", "", ""),
        ("ü.", "\udc80ü\u2028", "ü\u2028"),
        ("a+", "a" * 300_000, "a" * 400),
    ],
)
def test_a_pattern_matches_at_every_line(pattern: str, text: str, found: str | None) -> None:
    assert search(pattern, text) == found


def test_a_pattern_that_backtracks_for_ever_is_given_up() -> None:
    with pytest.raises(AgentError, match="was not known within"):
        search("(x+x+)+y", "x" * 1000, limit_s=0.5)
