"""Since when something should have been done, by the schedules of the config."""

from __future__ import annotations

import datetime as dt

from drvm.config.section import ScheduledSection
from drvm.config.settings import Settings
from drvm.schedule.timing import Timing
from drvm.schedule.windows import parse_window

GRACE = dt.timedelta(days=1)
"""How long after its time something may still not have begun: retries and long queues are no reason
to call anybody."""

_MAX_STEPS = 500
_STEP = dt.timedelta(hours=1)


def timing_of(
    section: ScheduledSection, schedule: str | None, jitter_s: float | None = None
) -> Timing | None:
    """``None`` without a schedule."""
    if schedule is None:
        return None
    blackouts = tuple(parse_window(text) for text in section.blackouts)
    return Timing(schedule, section.time_zone, jitter_s or 0.0, blackouts)


class DueTimes:
    """The last fire of each schedule whose run should have begun by a day ago, however the policy
    spreads runs and whatever it keeps free; ``None`` where there is none, or no schedule."""

    def __init__(self, settings: Settings, now: dt.datetime) -> None:
        self.settings, self.now = settings, now
        self._policies = {policy.name: policy for policy in settings.policies}
        self._known: dict[Timing, dt.datetime | None] = {}

    def of(self, timing: Timing | None) -> dt.datetime | None:
        if timing is not None and timing not in self._known:
            self._known[timing] = self._reckoned(timing)
        return self._known[timing] if timing is not None else None

    def backup(self, policy: str | None) -> dt.datetime | None:
        """Of the backups of this policy."""
        found = self._policies.get(policy or "")
        return self.of(timing_of(found, found.schedule, found.jitter_s)) if found else None

    def drill(self, policy: str | None) -> dt.datetime | None:
        found = self._policies.get(policy or "")
        if found is None or found.drill is None:
            return None
        return self.of(timing_of(found, found.drill.schedule, found.jitter_s))

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
