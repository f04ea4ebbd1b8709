"""When a run of a job begins: fires, spread by jitter, kept out of blackouts; and tries again.

All of it is arithmetic on moments, in UTC, and the same on every host and after every restart.
"""

from __future__ import annotations

import datetime as dt
import functools
import hashlib
from dataclasses import dataclass

from drvm.schedule import cron
from drvm.schedule.windows import Window, blacked_out_until

MAX_BACKOFF_S = 3600.0
_FRACTIONS = 1 << 48
_MAX_KNOWN = 1024


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
        return _last_fire(self.schedule, self.time_zone, now)

    def next_fire(self, after: dt.datetime) -> dt.datetime:
        return _next_fire(self.schedule, self.time_zone, after)

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


def _fraction(subject: str, fire: dt.datetime) -> float:
    """From 0 to below 1: another one for each subject and each fire."""
    text = f"{subject}\0{fire.astimezone(dt.UTC).isoformat()}".encode()
    digest = hashlib.blake2b(text, digest_size=6).digest()
    return int.from_bytes(digest, "big") / _FRACTIONS


@functools.lru_cache(1024)
def _next_fire(schedule: str, time_zone: str, after: dt.datetime) -> dt.datetime:
    return cron.next_fire(schedule, time_zone, after)


_known: dict[tuple[str, str], tuple[dt.datetime, dt.datetime]] = {}
"""Of each schedule two fires that follow each other: where the clock mostly is between them."""


def _last_fire(schedule: str, time_zone: str, now: dt.datetime) -> dt.datetime | None:
    key = (schedule, time_zone)
    if key in _known and _known[key][0] <= now < _known[key][1]:
        return _known[key][0]
    last = cron.last_fire(schedule, time_zone, now)
    if last is not None:
        if len(_known) >= _MAX_KNOWN:
            _known.clear()
        _known[key] = (last, _next_fire(schedule, time_zone, last))
    return last
