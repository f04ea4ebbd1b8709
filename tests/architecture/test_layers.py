"""Imports point down only, and rooms on one level don't know each other."""

from __future__ import annotations

import sys
from collections.abc import Iterable

import pytest

from tests.architecture.source import Source, planted, sources

LEVELS = {
    "core": 0,
    "host": 1,
    "store": 1,
    "chunker": 1,
    "schedule": 1,
    "report": 1,
    "config": 1,
    "runs": 1,
    "notify": 1,
    "snapshot": 2,
    "repository": 2,
    "lab": 2,
    "backup": 3,
    "restore": 3,
    "upkeep": 3,
    "drill": 4,
    "wiring": 5,
    "daemon": 6,
    "web": 6,
    "cli": 7,
    "__main__": 8,
}
"""A new room gets a line here, and ARCHITECTURE.md says what lives there."""


def violations(tree: Iterable[Source]) -> list[str]:
    found = []
    for source in tree:
        if source.room == "__init__":  # the package itself is of no level and imports nothing
            found += [f"{source.path}:{line} imports {name}" for line, name in source.imports]
            continue
        if source.room not in LEVELS:
            found.append(f"{source.path}: the room {source.room} has no level")
            continue
        for line, name in source.imports:
            if (target := _room(name)) is None or target == source.room:
                continue
            if LEVELS.get(target, 99) >= LEVELS[source.room]:
                found.append(f"{source.path}:{line} imports {name}")
    return found


def _room(name: str) -> str | None:
    """The room that an import reaches into. ``drvm.__version__`` is in none."""
    parts = name.split(".")
    return parts[1] if parts[0] == "drvm" and parts[1:] not in ([], ["__version__"]) else None


def test_imports_point_down_only() -> None:
    assert violations(sources()) == []


def test_core_imports_the_standard_library_only() -> None:
    foreign = [
        f"{source.path}:{line} {name}"
        for source in sources()
        if source.room == "core"
        for line, name in source.imports
        if name.partition(".")[0] not in sys.stdlib_module_names | {"drvm"}
    ]
    assert foreign == []


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("drvm/store/s3.py", "from drvm.repository import pack"),
        ("drvm/store/s3.py", "from drvm.chunker.runs import Run"),
        ("drvm/store/s3.py", "import drvm.wiring"),
        ("drvm/core/ids.py", "def f():\n    from drvm import store"),
        ("drvm/store/s3.py", "from ..chunker import runs"),
        (
            "drvm/backup/run.py",
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import drvm.restore.plan",
        ),
        ("drvm/helpers/things.py", ""),
        ("drvm/__init__.py", "import drvm.core"),
    ],
)
def test_the_rule_of_levels_sees_a_planted_violation(path: str, text: str) -> None:
    assert len(violations([planted(path, text)])) == 1


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("drvm/repository/pack.py", "from drvm.store.base import Store\nimport drvm.core.ids"),
        ("drvm/store/s3.py", "from .base import Store\nfrom drvm import __version__"),
        ("drvm/wiring.py", "from drvm.drill import run"),
    ],
)
def test_the_rule_of_levels_lets_imports_down_pass(path: str, text: str) -> None:
    assert violations([planted(path, text)]) == []
