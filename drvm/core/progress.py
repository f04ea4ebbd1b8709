"""How long work tells where it is, and how tests and journals follow it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Protocol

from drvm.core.clock import Clock

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


class Meter:
    """How fast a stage goes, by its last ``_MEMORY_S`` or so, and how long it will take at that.
    One thread at a time."""

    _MEMORY_S = 60.0
    _MARKS = 16

    def __init__(self, clock: Clock, total_bytes: int) -> None:
        self.total_bytes = total_bytes
        self.done_bytes = 0
        self._clock = clock
        self._marks = deque([(clock.monotonic_s(), 0)], self._MARKS)

    def advance(self, done_bytes: int) -> None:
        self.done_bytes += done_bytes
        now_s = self._clock.monotonic_s()
        if now_s - self._marks[-1][0] >= self._MEMORY_S / self._MARKS:
            self._marks.append((now_s, self.done_bytes))

    def bytes_per_s(self) -> float:
        """0 before anything can be said."""
        then_s, then_bytes = self._marks[0]
        passed_s = self._clock.monotonic_s() - then_s
        return (self.done_bytes - then_bytes) / passed_s if passed_s > 0 else 0.0

    def left_s(self) -> float | None:
        """``None`` while it does not move."""
        rate = self.bytes_per_s()
        return max(0, self.total_bytes - self.done_bytes) / rate if rate > 0 else None


class NoProgress:
    """For whoever does not look."""

    def stage(self, title: str, total_bytes: int | None = None) -> None:
        pass

    def advance(self, done_bytes: int) -> None:
        pass


def no_trace(step: str) -> None:
    """For whoever does not follow."""
