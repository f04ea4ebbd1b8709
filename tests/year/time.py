"""True time, which goes on evenly, and a host's clocks, which need not show it."""

from __future__ import annotations

import datetime as dt
import heapq
import itertools
from collections.abc import Callable

START = dt.datetime(2026, 1, 1, 0, 0, 30, tzinfo=dt.UTC)


class HostClock:
    """``true_s`` since ``START``. The wall clock is ahead of it by ``ahead_s``, which jumps; the
    monotonic one stands still while the host sleeps."""

    def __init__(self) -> None:
        self.true_s = 0.0
        self.ahead_s = 0.0
        self.asleep_s = 0.0

    def now(self) -> dt.datetime:
        return START + dt.timedelta(seconds=self.true_s + self.ahead_s)

    def true(self) -> dt.datetime:
        return START + dt.timedelta(seconds=self.true_s)

    def monotonic_s(self) -> float:
        return self.true_s - self.asleep_s

    def sleep(self, seconds: float) -> None:
        raise AssertionError("nothing that decides may sleep")


class Events:
    """What happens when, in true time; the clock stands at the one that happens."""

    def __init__(self, clock: HostClock) -> None:
        self._clock = clock
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = itertools.count()

    def at(self, true_s: float, happens: Callable[[], None]) -> None:
        moment = max(true_s, self._clock.true_s)
        heapq.heappush(self._heap, (moment, next(self._numbers), happens))

    def after(self, seconds: float, happens: Callable[[], None]) -> None:
        self.at(self._clock.true_s + seconds, happens)

    def run(self, until_s: float) -> None:
        while self._heap and self._heap[0][0] <= until_s:
            moment, _, happens = heapq.heappop(self._heap)
            self._clock.true_s = max(self._clock.true_s, moment)
            happens()
        self._clock.true_s = max(self._clock.true_s, until_s)
