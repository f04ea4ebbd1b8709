"""When a run of a job begins: fires, spread by jitter, kept out of blackouts; and tries again.

All of it is arithmetic on moments, in UTC, and the same on every host and after every restart.
"""

from __future__ import annotations

import bisect
import datetime as dt
import functools
import hashlib
from dataclasses import dataclass

from drvm.schedule import cron
from drvm.schedule.windows import Window, blacked_out_until

MAX_BACKOFF_S = 3600.0
_FRACTIONS = 1 << 48
_MAX_SCHEDULES = 1024
_MAX_FIRES = 100
_MAX_STEPS = 50
_Around = tuple[dt.datetime | None, dt.datetime]


@dataclass(frozen=True, slots=True)
class Timing:
    """``schedule``: a cron expression in ``time_zone``, an IANA name. Runs are spread over
    ``jitter_s``, and none begins in one of ``blackouts``, which are of the same zone."""

    schedule: str
    time_zone: str = "UTC"
    jitter_s: float = 0.0
    blackouts: tuple[Window, ...] = ()

    def last_fire(self, now: dt.datetime) -> dt.datetime | None:
        """The last one up to ``now``; ``None`` where it has not fired for years."""
        return _around(self.schedule, self.time_zone, now)[0]

    def next_fire(self, after: dt.datetime) -> dt.datetime:
        return _around(self.schedule, self.time_zone, after)[1]

    def begin(self, fire: dt.datetime, subject: str) -> dt.datetime | None:
        """When the run of ``subject`` (job and VM) begins that ``fire`` asks for: after a blackout
        spread anew, as not all may begin at its end. ``None``: never."""
        clear = self.clear(fire)
        if clear is None or not self.jitter_s:
            return clear
        return self.clear(
            clear + self.jitter_s * _fraction(subject, fire) * dt.timedelta(seconds=1)
        )

    def clear(self, moment: dt.datetime) -> dt.datetime | None:
        """The first moment from this one on that is in no blackout."""
        if not self.blackouts:
            return moment
        return blacked_out_until(self.blackouts, self.time_zone, moment)


@dataclass(frozen=True, slots=True)
class Retry:
    """After a failure ``times`` more tries: ``after_s`` later, then twice as long each time."""

    times: int = 3
    after_s: float = 300.0

    def wait_s(self, attempt: int) -> float | None:
        """How long after the end of the failed ``attempt`` (from 1); ``None``: no more tries."""
        if attempt > self.times:
            return None
        return min(self.after_s * 2.0 ** min(attempt - 1, 60), max(MAX_BACKOFF_S, self.after_s))


NO_RETRY = Retry(times=0)


@functools.lru_cache(4096)
def _fraction(subject: str, fire: dt.datetime) -> float:
    """From 0 to below 1: another one for each subject and each fire."""
    text = f"{subject}\0{fire.astimezone(dt.UTC).isoformat()}".encode()
    digest = hashlib.blake2b(text, digest_size=6).digest()
    return int.from_bytes(digest, "big") / _FRACTIONS


_fires: dict[tuple[str, str], tuple[dt.datetime, ...]] = {}
"""Of each schedule the fires of late, each the next one of the one before."""


def _around(schedule: str, time_zone: str, moment: dt.datetime) -> _Around:
    """The last fire up to ``moment``, where there is one, and the next one."""
    key = (schedule, time_zone)
    fires = _fires.get(key, ())
    if fires and fires[0] <= moment:
        for _ in range(_MAX_STEPS):
            if moment < fires[-1]:
                place = bisect.bisect(fires, moment)
                return fires[place - 1], fires[place]
            fires = (*fires[-_MAX_FIRES:], cron.next_fire(schedule, time_zone, fires[-1]))
            _fires[key] = fires
    last, following = _reckoned(schedule, time_zone, moment)
    if last is not None and (not fires or fires[-1] < last):
        if len(_fires) >= _MAX_SCHEDULES:
            _fires.clear()
        _fires[key] = (last, following)
    return last, following


@functools.lru_cache(1024)
def _reckoned(schedule: str, time_zone: str, moment: dt.datetime) -> _Around:
    last = cron.last_fire(schedule, time_zone, moment)
    return last, cron.next_fire(schedule, time_zone, moment)
