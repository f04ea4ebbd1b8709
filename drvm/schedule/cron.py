"""Cron expressions: five fields, in a time zone, with cron's own behaviour on both DST days.

The rules are Debian cron's, by ``cronsim``: a job at a fixed time inside the hour that spring
skips fires once, at the first moment after it; inside the hour that autumn repeats it fires once,
the first time. Jobs with ``*`` in the minute or hour field follow the real time instead.
"""

from __future__ import annotations

import collections
import datetime as dt
import functools
import itertools
import zoneinfo
from collections.abc import Iterator

from cronsim import CronSim, CronSimError

from drvm.core.errors import UsageError

MAX_EXPRESSION_CHARS = 200
MAX_PAST_FIRES = 1000
"""How many fires of the past one step may pass over; autumn's doubled hour holds 60 minutes."""

_EPOCH = dt.datetime(2020, 1, 1, tzinfo=dt.UTC)


@functools.lru_cache(1024)
def expression_problem(expression: str) -> str | None:
    """What is wrong with a cron expression, for people; ``None`` if it fires now and then."""
    fields = expression.split()
    if len(expression) > MAX_EXPRESSION_CHARS:
        return f"a cron expression is at most {MAX_EXPRESSION_CHARS} characters long"
    if len(fields) != 5:
        return f"a cron expression has 5 fields (minute hour day month weekday), not {len(fields)}"
    try:
        next(CronSim(expression, _EPOCH))
    except CronSimError as error:
        return f"{expression!r} is no cron expression: {str(error).lower()}"
    except StopIteration:
        return f"{expression!r} never fires"
    return None


def time_zone_problem(name: str) -> str | None:
    try:
        zoneinfo.ZoneInfo(name)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError):
        return f"{name!r} is no time zone of this machine, such as Europe/Berlin or UTC"
    return None


def next_fire(expression: str, time_zone: str, after: dt.datetime) -> dt.datetime:
    """The first fire strictly after ``after``; in UTC, on a whole minute.

    Raises ``UsageError`` for what the two functions above complain about.
    """
    return next(_fires(expression, time_zone, after))


def last_fire(expression: str, time_zone: str, until: dt.datetime) -> dt.datetime | None:
    """The last fire up to ``until``; ``None`` where there was none for nine years, which is longer
    than a 29 February may be away."""
    for days in (1 / 24, 1, 40, 400, 9 * 366):
        fires = _fires(expression, time_zone, until - dt.timedelta(days=days))
        newest = collections.deque(itertools.takewhile(lambda fire: fire <= until, fires), maxlen=1)
        if newest:
            return newest[0]
    return None


def fires_between(
    expression: str, time_zone: str, after: dt.datetime, until: dt.datetime, *, limit: int
) -> list[dt.datetime]:
    """The fires in ``(after, until]``, the oldest first, at most ``limit`` of them.

    After a downtime: a run is overdue if there is one since the last run.
    """
    due = itertools.takewhile(lambda fire: fire <= until, _fires(expression, time_zone, after))
    return list(itertools.islice(due, limit))


def _fires(expression: str, time_zone: str, after: dt.datetime) -> Iterator[dt.datetime]:
    """Strictly rising moments. cronsim drops the fold of its starting point, so inside autumn's
    second hour it first offers moments of the first one: they are passed over."""
    problem = expression_problem(expression) or time_zone_problem(time_zone)
    if problem is not None:
        raise UsageError(problem)
    if after.tzinfo is None:
        raise ValueError("a moment without a time zone")
    last = after.astimezone(dt.UTC)
    passed_over = 0
    for fire in CronSim(expression, last.astimezone(zoneinfo.ZoneInfo(time_zone))):
        moment = fire.astimezone(dt.UTC)
        if moment > last:
            last, passed_over = moment, 0
            yield moment
            continue
        passed_over += 1
        if passed_over > MAX_PAST_FIRES:
            raise UsageError(f"{expression!r} finds no next time in {time_zone}")
    raise UsageError(f"{expression!r} never fires again")
