"""What a server says: to a log that stays small, whatever a guest does to its damaged disk."""

from __future__ import annotations

import threading
from collections.abc import Callable

from drvm.core.clock import Clock
from drvm.core.text import printable

_AGAIN_S = 60.0
_MOST_LINES = 2000
_MOST_KNOWN = 256


class Telling:
    """Gives lines to ``write``: the same one once a minute, and no more than 2000 in all."""

    def __init__(self, clock: Clock, write: Callable[[str], object]) -> None:
        self._clock = clock
        self._write = write
        self._told_s: dict[str, float] = {}
        self._lines = 0
        self._lock = threading.Lock()

    def __call__(self, line: str) -> None:
        now_s = self._clock.monotonic_s()
        with self._lock:
            if now_s - self._told_s.get(line, -_AGAIN_S) < _AGAIN_S or self._lines > _MOST_LINES:
                return
            if len(self._told_s) >= _MOST_KNOWN:
                self._told_s.clear()
            self._told_s[line] = now_s
            self._lines += 1
            last = self._lines > _MOST_LINES
            self._write("no more is told" if last else printable(line, 1000))
