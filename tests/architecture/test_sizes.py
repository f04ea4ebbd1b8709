"""Files and functions stay small enough to read."""

from __future__ import annotations

import ast
from collections.abc import Iterable

from tests.architecture.source import Source, planted, sources

MAX_FILE_LINES = 350
MAX_FUNCTION_LINES = 60

ALLOWED: frozenset[str] = frozenset()
"""Paths, or path:function, that may be longer, each with the reason in a comment."""


def too_long(tree: Iterable[Source]) -> dict[str, int]:
    """Path or path:function -> lines."""
    found = {}
    for source in tree:
        lines = len(source.text.splitlines())
        if lines > MAX_FILE_LINES:
            found[source.path] = lines
        for node in ast.walk(source.tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = (node.end_lineno or node.lineno) - node.lineno + 1
                if lines > MAX_FUNCTION_LINES:
                    found[f"{source.path}:{node.name}"] = lines
    return found


def test_files_and_functions_fit_on_few_screens() -> None:
    assert {k: v for k, v in too_long(sources()).items() if k not in ALLOWED} == {}


def test_every_exception_from_the_limits_is_still_needed() -> None:
    assert frozenset(too_long(sources())) >= ALLOWED


def test_the_limits_see_a_planted_long_file_and_function() -> None:
    text = "def f():\n" + "    x = 1\n" * 400
    assert too_long([planted("drvm/store/s3.py", text)]) == {
        "drvm/store/s3.py": 401,
        "drvm/store/s3.py:f": 401,
    }
