"""Cron expressions: five fields, in a time zone, with cron's own behaviour on both DST days.

The rules are Debian cron's, by ``cronsim``: a job at a fixed time inside the hour that spring
skips fires once, at the first moment after it; inside the hour that autumn repeats it fires once,
the first time. Jobs with ``*`` at the beginning of the minute or hour field fire whenever the
wall's clock says so: also the second time, and not in what is skipped.
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
    """Strictly rising moments."""
    problem = expression_problem(expression) or time_zone_problem(time_zone)
    if problem is not None:
        raise UsageError(problem)
    if after.tzinfo is None:
        raise ValueError("a moment without a time zone")
    zone = zoneinfo.ZoneInfo(time_zone)
    last = after.astimezone(dt.UTC)
    for moment in _moments(expression, last.astimezone(zone), zone):
        if moment > last:
            last = moment
            yield moment
    raise UsageError(f"{expression!r} never fires again")


def _moments(expression: str, after: dt.datetime, zone: zoneinfo.ZoneInfo) -> Iterator[dt.datetime]:
    """cronsim is asked for times of the wall's clock only: its own way over the clock's changes
    misses fires where those are of half an hour, or at midnight."""
    minute, hour = expression.split()[:2]
    of_day = not minute.startswith("*") and not hour.startswith("*")
    second_time: list[dt.datetime] = []
    wall = after.replace(tzinfo=None, fold=0)
    for fire in CronSim(expression, wall - max(_doubled(wall, zone), dt.timedelta())):
        doubled = _doubled(fire, zone)
        if doubled <= dt.timedelta():
            yield from second_time
            second_time = []
        first = fire.replace(tzinfo=zone).astimezone(dt.UTC)
        if doubled >= dt.timedelta():
            yield first
        elif of_day:
            yield _after_gap(fire, zone)
        if doubled > dt.timedelta() and not of_day:
            second_time.append(first + doubled)
    yield from second_time


def _doubled(wall: dt.datetime, zone: zoneinfo.ZoneInfo) -> dt.timedelta:
    """How much later it comes a second time; less than nothing where it does not come at all."""
    first, second = (wall.replace(tzinfo=zone, fold=fold).utcoffset() for fold in (0, 1))
    assert first is not None and second is not None
    return first - second


def _after_gap(wall: dt.datetime, zone: zoneinfo.ZoneInfo) -> dt.datetime:
    """The first moment after the times that do not come, of which ``wall`` is one."""
    while _doubled(wall, zone) < dt.timedelta():
        wall += dt.timedelta(minutes=1)
    return wall.replace(tzinfo=zone).astimezone(dt.UTC)
