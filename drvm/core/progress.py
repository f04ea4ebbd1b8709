"""How long work tells where it is, and how tests and journals follow it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

Trace = Callable[[str], None]
"""Called with the name of each step that has just become true, such as ``snapshot-taken``.

The names are part of the contract of the code that calls it: logs show them, and the kill
harness ends the process at them.
"""


class Progress(Protocol):
    def stage(self, title: str, total_bytes: int | None = None) -> None:
        """A new part of the work begins; ``total_bytes`` where it is known."""
        ...

    def advance(self, done_bytes: int) -> None:
        """So many more bytes of the present stage are done. May be called from any thread."""
        ...


class NoProgress:
    """For whoever does not look."""

    def stage(self, title: str, total_bytes: int | None = None) -> None:
        pass

    def advance(self, done_bytes: int) -> None:
        pass


def no_trace(step: str) -> None:
    """For whoever does not follow."""
