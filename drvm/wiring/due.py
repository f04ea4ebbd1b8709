"""Since when something should have been done, by the timetable."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable

from drvm.schedule.timing import Timing
from drvm.wiring.timetable import PlannedJob

GRACE = dt.timedelta(days=1)
"""How long after its time something may still not have begun: retries and long queues are no reason
to call anybody."""

_MAX_STEPS = 500
_STEP = dt.timedelta(hours=1)


class DueTimes:
    """The last fire of each job whose run should have begun by a day ago, however runs are spread
    and kept out; ``None`` where there is none, or no schedule."""

    def __init__(self, jobs: Iterable[PlannedJob], now: dt.datetime) -> None:
        self.now = now
        self._timings = {job.name: job.timing for job in jobs}
        self._known: dict[Timing, dt.datetime | None] = {}

    def of(self, job: str) -> dt.datetime | None:
        timing = self._timings.get(job)
        if timing is not None and timing not in self._known:
            self._known[timing] = self._reckoned(timing)
        return self._known[timing] if timing is not None else None

    def _reckoned(self, timing: Timing) -> dt.datetime | None:
        spread = dt.timedelta(seconds=timing.jitter_s)
        limit = self.now - GRACE
        moment = limit - spread
        for _ in range(_MAX_STEPS):
            fire = timing.last_fire(moment)
            clear = timing.clear(fire) if fire is not None else None
            latest = timing.clear(clear + spread) if clear is not None else None
            if fire is None or latest is None:
                return None
            if latest <= limit:
                return fire
            moment = fire - _STEP  # in a blackout, at whose end all of its fires begin
        return None
