"""The tree under test as syntax: which file is where, what it imports, what it uses."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Source:
    """One Python file; ``path`` is relative to the checkout, such as ``drvm/store/s3.py``."""

    path: str
    text: str

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.text, self.path)

    @property
    def room(self) -> str:
        """``store`` for ``drvm/store/s3.py``, ``wiring`` for ``drvm/wiring.py``."""
        return self.path.split("/")[1].removesuffix(".py")

    @cached_property
    def imports(self) -> tuple[tuple[int, str], ...]:
        """(line, dotted name) of everything imported anywhere in the file, also inside functions
        and under TYPE_CHECKING. ``from a import b`` counts as ``a.b``."""
        return tuple((line, name) for line, name, _ in self._bindings)

    @cached_property
    def uses(self) -> tuple[tuple[int, str], ...]:
        """(line, dotted name) of every name or attribute, with import aliases resolved:
        ``dt.datetime.now`` after ``import datetime as dt`` is ``datetime.datetime.now``."""
        aliases = {alias: name for _, name, alias in self._bindings if alias}
        found = []
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Attribute | ast.Name):
                first, dot, rest = _dotted(node).partition(".")
                found.append((node.lineno, aliases.get(first, first) + dot + rest))
        return tuple(found)

    @cached_property
    def _bindings(self) -> tuple[tuple[int, str, str], ...]:
        """(line, imported name, the name it is bound to, empty where it is spelled in full)."""
        found = []
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Import):
                for item in node.names:
                    found.append((node.lineno, item.name, item.asname or ""))
            elif isinstance(node, ast.ImportFrom):
                base = self._absolute(node)
                for item in node.names:
                    found.append((node.lineno, f"{base}.{item.name}", item.asname or item.name))
        return tuple(found)

    def _absolute(self, node: ast.ImportFrom) -> str:
        if node.level == 0:
            return node.module or ""
        package = self.path.split("/")[: -node.level]
        return ".".join([*package, *([node.module] if node.module else [])])


def planted(path: str, text: str) -> Source:
    """A file that is not there, to prove that a rule can fail."""
    return Source(path, text)


def sources() -> Iterator[Source]:
    for path in sorted((ROOT / "drvm").rglob("*.py")):
        yield Source(path.relative_to(ROOT).as_posix(), path.read_text(encoding="utf-8"))


def _dotted(node: ast.expr) -> str:
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        return f"{_dotted(node.value)}.{node.attr}"
    return "?"
