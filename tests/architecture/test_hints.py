"""What drvm tells people to type exists."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

from drvm.cli.registry import VERBS
from tests.architecture.source import Source, planted, sources

_COMMAND = re.compile(r"(?<![\w./-])drvm ([a-z]+)")
_PROSE = frozenset(
    {"follows", "never", "on", "reads", "restores", "that", "there", "touches", "usually"}
)
"""Words that follow "drvm" in sentences."""


def unknown_verbs(source: Source) -> Iterator[tuple[str, str]]:
    """(path:line, word) of every ``drvm WORD`` in a hint where the word is no verb."""
    known = {verb.name for verb in VERBS} | _PROSE
    hints = (node for node in ast.walk(source.tree) if isinstance(node, ast.keyword))
    for hint in hints:
        if hint.arg != "hint":
            continue
        for node in ast.walk(hint.value):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                for match in _COMMAND.finditer(node.value):
                    if match[1] not in known:
                        yield f"{source.path}:{node.lineno}", match[1]


def test_every_command_that_a_hint_names_is_a_verb() -> None:
    assert [bad for source in sources() for bad in unknown_verbs(source)] == []


def test_a_planted_hint_with_an_unknown_verb_is_seen() -> None:
    text = "raise E('no', hint='drvm doctor, or drvm repair')\n"
    assert list(unknown_verbs(planted("drvm/store/x.py", text))) == [
        ("drvm/store/x.py:1", "repair")
    ]
