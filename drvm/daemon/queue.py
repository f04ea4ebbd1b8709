"""Which tasks are to be considered when: a heap of those to come, and those whose time has come."""

from __future__ import annotations

import bisect
import datetime as dt
import heapq
import itertools
from collections.abc import Iterable

from drvm.daemon.task import Key

STARVED = dt.timedelta(days=1)
"""Lower orders with more to do than there is time for would else keep the others for ever."""

_Place = tuple[int, dt.datetime, Key]


class Queue:
    """Each task is in one place at most. One thread at a time."""

    def __init__(self) -> None:
        self._again: dict[Key, None] = {}
        self._heap: list[tuple[dt.datetime, int, Key]] = []
        self._entries: dict[Key, tuple[int, int]] = {}  # its number in the heap, its order
        self._ready: list[_Place] = []
        self._places: dict[Key, _Place] = {}
        self._numbers = itertools.count()

    def reconsider(self, key: Key) -> None:
        self._again[key] = None

    def reconsider_all(self, keys: Iterable[Key]) -> None:
        self._again.update(dict.fromkeys(keys))

    def take_reconsidered(self) -> list[Key]:
        taken, self._again = list(self._again), {}
        return taken

    def put(self, key: Key, order: int, begin: dt.datetime, now: dt.datetime) -> None:
        """It waits from ``begin`` on, among those whose time has come by the order first, then by
        how long they wait."""
        place = (order, begin, key)
        if begin <= now and key in self._places:
            place = (order, min(begin, self._places[key][1]), key)
            if place == self._places[key]:
                return
        self.drop(key)
        if begin <= now:
            self._places[key] = place
            bisect.insort(self._ready, place)
        else:
            number = next(self._numbers)
            self._entries[key] = (number, order)
            heapq.heappush(self._heap, (begin, number, key))

    def drop(self, key: Key) -> None:
        self._entries.pop(key, None)
        place = self._places.pop(key, None)
        if place is not None:
            del self._ready[bisect.bisect_left(self._ready, place)]

    def advance(self, now: dt.datetime) -> None:
        """The time of some has come."""
        while self._heap and self._heap[0][0] <= now:
            begin, number, key = heapq.heappop(self._heap)
            entry = self._entries.get(key)
            if entry is not None and entry[0] == number:
                self.put(key, entry[1], begin, now)

    def waiting(self, now: dt.datetime) -> list[Key]:
        """Who goes first, first: who waits for longer than ``STARVED``, whatever its order."""
        starved = [key for _, begin, key in self._ready if now - begin > STARVED]
        return [*starved, *(key for _, begin, key in self._ready if now - begin <= STARVED)]

    def soonest(self) -> dt.datetime | None:
        """When the time of the next one comes."""
        while self._heap:
            begin, number, key = self._heap[0]
            entry = self._entries.get(key)
            if entry is not None and entry[0] == number:
                return begin
            heapq.heappop(self._heap)
        return None
