"""What was read of small objects, kept in memory for who asks for all of them again and again.

Such objects are created once and never rewritten, so what was made of one stays right as long as
the store lists it as it was. A look that is to find damage does not remember: ``drvm check`` reads.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from datetime import datetime
from typing import TypeVar, cast

from drvm.store.base import ObjectInfo

_T = TypeVar("_T")
_State = tuple[tuple[int, datetime], ...]


class Remembered:
    """Of one repository; for any thread. Only what could be read is kept."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: dict[str, tuple[_State, object]] = {}

    def of(self, infos: tuple[ObjectInfo, ...], read: Callable[[], _T]) -> _T:
        """What ``read`` made of these objects, the first of which names it: now, or before.
        Raises what ``read`` raises."""
        state = tuple((info.size_bytes, info.modified) for info in infos)
        with self._lock:
            kept = self._kept.get(infos[0].name)
        if kept is not None and kept[0] == state:
            return cast(_T, kept[1])
        value = read()
        with self._lock:
            self._kept[infos[0].name] = (state, value)
        return value

    def keep_only(self, prefix: str, names: Iterable[str]) -> None:
        """Forget what is below ``prefix`` and not among ``names``, a whole listing of it."""
        there = frozenset(names)
        with self._lock:
            gone = [n for n in self._kept if n.startswith(prefix) and n not in there]
            for name in gone:
                del self._kept[name]
