"""When a job runs: cron as cron means it, behind APScheduler's interface.

APScheduler's own cron trigger returns one time for ever in the autumn hour that comes twice,
counts weekdays from Monday and joins the two kinds of day with "and".
"""

from __future__ import annotations

import datetime as dt
from typing import Any

from apscheduler.triggers.base import BaseTrigger

from drvm.schedule.cron import next_fire


class CronsimTrigger(BaseTrigger):  # type: ignore[misc]  # APScheduler is untyped
    def __init__(self, expression: str, time_zone: str) -> None:
        self._expression = expression
        self._time_zone = time_zone

    def get_next_fire_time(
        self, previous_fire_time: dt.datetime | None, now: dt.datetime
    ) -> dt.datetime:
        """Strictly after the previous one, and after now where a downtime lies between."""
        after = max(now, previous_fire_time) if previous_fire_time is not None else now
        return next_fire(self._expression, self._time_zone, after)

    def __getstate__(self) -> Any:
        raise TypeError("jobs are made from the config at every start, and never stored")
