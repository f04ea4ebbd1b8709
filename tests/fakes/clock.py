"""A clock that the test turns."""

from __future__ import annotations

import datetime as dt


class FakeClock:
    """Sleeping is free and moves both clocks on."""

    def __init__(self, start: dt.datetime = dt.datetime(2026, 11, 23, 4, 0, tzinfo=dt.UTC)) -> None:
        self.wall = start
        self.passed_s = 0.0

    def now(self) -> dt.datetime:
        return self.wall

    def monotonic_s(self) -> float:
        return self.passed_s

    def sleep(self, seconds: float) -> None:
        self.wall += dt.timedelta(seconds=seconds)
        self.passed_s += seconds
