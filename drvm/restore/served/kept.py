"""What was used last, within a bound, and made once though many ask for it."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class Kept(Generic[K, V]):
    """Values by key, up to ``limit`` by what ``weigh`` says of each (1 where it is not given).
    Safe for several threads; those that ask for different keys don't wait for each other."""

    def __init__(self, limit: int, weigh: Callable[[V], int] = lambda _: 1) -> None:
        self.limit = limit
        self._weigh = weigh
        self._weight = 0
        self._values: OrderedDict[K, V] = OrderedDict()
        self._making: dict[K, threading.Lock] = {}
        self._lock = threading.Lock()

    def get(self, key: K) -> V | None:
        with self._lock:
            return self._get(key)

    def put(self, key: K, value: V) -> None:
        with self._lock:
            self._drop(key)
            self._values[key] = value
            self._weight += self._weigh(value)
            while self._weight > self.limit and len(self._values) > 1:
                self._weight -= self._weigh(self._values.popitem(last=False)[1])

    def drop(self, key: K) -> None:
        with self._lock:
            self._drop(key)

    def make(self, key: K, maker: Callable[[], V]) -> V:
        """What is there, or what ``maker`` returns: one thread makes it, others that want the same
        wait. Raises what ``maker`` raises; who waited then tries it too."""
        with self._lock:
            value = self._get(key)
            if value is not None:
                return value
            making = self._making.setdefault(key, threading.Lock())
        with making:
            value = self.get(key)
            if value is None:
                try:
                    value = maker()
                    self.put(key, value)
                finally:
                    with self._lock:
                        self._making.pop(key, None)
            return value

    def _get(self, key: K) -> V | None:
        value = self._values.get(key)
        if value is not None:
            self._values.move_to_end(key)
        return value

    def _drop(self, key: K) -> None:
        value = self._values.pop(key, None)
        if value is not None:
            self._weight -= self._weigh(value)
